"""Two runs, cell by cell: what changed, judged as judgement.py says, and why some cells cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from marlin_bench.bootstrap import Doubt, Floats, Level
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.judgement import Change, Evidence, Judgement, change, holm, judge
from marlin_bench.noise import NoiseMap, process_noise
from marlin_bench.one_clock import Blocks, OneClock, at_one_clock, blocks_of
from marlin_bench.record import Origin, Record, RunMeta, Status
from marlin_bench.speedup import HEADLINE_BASELINE

_OLD, _NEW = 1, 2  # bootstrap streams: the two runs are independent
_LEAST_BLOCKS = 6


@dataclass(frozen=True, slots=True)
class CellChange:
    """One cell's verdict with its evidence; `evidence` is None where nothing can be compared."""

    cell: str
    backend: str
    timer: str
    old: Record | None
    new: Record | None
    judgement: Judgement
    reason: str
    evidence: Evidence | None = None

    @property
    def named(self) -> Record:
        """Whichever record there is, for the fields that both share."""
        found = self.new or self.old
        assert found is not None  # a change has at least one side
        return found


Key = tuple[str, str, str]


def _key(record: Record) -> Key:
    return (record.cell, record.backend, record.timer)


@dataclass(frozen=True, eq=False)
class _Sampled:
    """A record with its series of logarithms, made once; `stream` tells the two runs apart."""

    record: Record
    stream: int

    @cached_property
    def places(self) -> dict[int, int]:
        """Where each block stands in the series."""
        return {block.index: place for place, block in enumerate(self.record.blocks)}

    @cached_property
    def blocks(self) -> Blocks:
        """Logarithms of seconds a launch and of hertz."""
        return blocks_of(self.record, self.stream)

    @cached_property
    def time(self) -> Level:
        """Seconds a launch."""
        return Level(self.blocks.times, self.stream)

    @cached_property
    def cycles(self) -> Level | None:
        """SM cycles a launch; None unless every block knows its clock."""
        clocks = self.blocks.clocks
        return None if clocks is None else Level(self.blocks.times + clocks, self.stream)


@dataclass(frozen=True, eq=False)
class _Side:
    """One record as it enters a comparison: at one clock with its counterpart, where that is known."""

    sampled: _Sampled
    times: Floats
    doubts: tuple[Doubt, ...] = ()

    @cached_property
    def level(self) -> Level:
        """Its own time."""
        return Level(self.times, self.sampled.stream, self.doubts)

    def over(self, baseline: _Side) -> Level | None:
        """Time over the baseline's time of the same block; None for too few pairs."""
        places = self.sampled.places
        both = [(place, baseline.sampled.places[i]) for i, place in places.items() if i in baseline.sampled.places]
        if len(both) < _LEAST_BLOCKS:
            return None
        own, other = (list(side) for side in zip(*both, strict=True))
        doubts = [Doubt(doubt.deviations, doubt.by_block[own]) for doubt in self.doubts]
        doubts += [Doubt(doubt.deviations, -doubt.by_block[other]) for doubt in baseline.doubts]
        return Level(self.times[own] - baseline.times[other], self.sampled.stream, tuple(doubts))


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two `ok` records of one cell, backend and timer."""

    old: _Sampled
    new: _Sampled

    @property
    def are_locked(self) -> bool:
        """Whether the clocks were locked in both runs."""
        return self.old.record.clocks_locked and self.new.record.clocks_locked

    @cached_property
    def one_clock(self) -> OneClock | None:
        """Both at one clock; None where clocks were locked or are not known."""
        return None if self.are_locked else at_one_clock(self.old.blocks, self.new.blocks)

    @cached_property
    def sides(self) -> tuple[_Side, _Side]:
        """Both records, at one clock where the clocks were free and are known."""
        found = self.one_clock
        if found is None:
            return _Side(self.old, self.old.blocks.times), _Side(self.new, self.new.blocks.times)
        return (
            _Side(self.old, found.old.times, (found.old.doubt,)),
            _Side(self.new, found.new.times, (found.new.doubt,)),
        )

    @cached_property
    def own(self) -> Change:
        """The change of the time, at one clock where that is known."""
        old, new = self.sides
        return change(old.level, new.level)


def _evidence(pair: _Pair, baseline: _Pair | None, policy: RelativeRule, noise: NoiseMap | None) -> Evidence:
    """What the samples of two `ok` records of one cell say."""
    old, new = pair.old, pair.new
    cycles = None
    if not pair.are_locked and old.cycles is not None and new.cycles is not None:
        cycles = change(old.cycles, new.cycles)
    paired, is_same = None, False
    noisy = tuple(side.level for side in pair.sides)
    if baseline is not None:
        is_same = baseline.old.record.backend_version == baseline.new.record.backend_version
        before, after = (side.over(other) for side, other in zip(pair.sides, baseline.sides, strict=True))
        if is_same and before is not None and after is not None:
            paired, noisy = change(before, after), (before, after)
    floor = max(level.noise for level in noisy)
    if noise is not None:
        floor = max(floor, noise.floor(new.record))
    elif pair.one_clock is not None:
        floor = max(floor, process_noise(pair.one_clock.elasticity))
    typical = math.exp(old.time.median)
    return Evidence(
        time=change(old.time, new.time),
        cycles=cycles,
        steady=None if pair.one_clock is None else pair.own,
        paired=paired,
        baseline=None if baseline is None else baseline.new.record.backend,
        baseline_part=None if baseline is None else baseline.own,
        baseline_is_same=is_same,
        clocks_locked=pair.are_locked,
        tolerance=policy.tolerance(typical, floor * typical) / typical,
        noise=floor,
    )


def _sampled(records: Iterable[Record], stream: int) -> dict[tuple[str, str], dict[str, _Sampled]]:
    """The records that can be compared, by cell and timer, then by backend."""
    found: dict[tuple[str, str], dict[str, _Sampled]] = {}
    for record in records:
        if record.status is Status.OK and len(record.blocks) >= _LEAST_BLOCKS:
            found.setdefault((record.cell, record.timer), {})[record.backend] = _Sampled(record, stream)
    return found


def _paired(old: dict[str, _Sampled], new: dict[str, _Sampled]) -> dict[str, _Pair]:
    """The backends that both sides of a cell hold."""
    return {name: _Pair(one, new[name]) for name, one in old.items() if name in new}


def _common_baseline(pairs: dict[str, _Pair], backend: str) -> _Pair | None:
    """The baseline that both sides of a cell hold: cublas_fp16, else the one that was fastest; never itself."""
    shared = [name for name, one in pairs.items() if one.old.record.baseline and name != backend]
    if not shared:
        return None
    return pairs[min(shared, key=lambda one: (one != HEADLINE_BASELINE, pairs[one].old.time.median))]


def _obstacle(old: Record | None, new: Record | None, *, across: bool) -> str | None:
    """Why two records cannot be compared, or None; `across` formats and dtypes they can."""
    if old is None or new is None:
        return "was not measured before" if old is None else "was measured before, and is not now"
    for record, when in ((old, "before"), (new, "now")):
        if record.origin is Origin.PUBLISHED:
            return f"is a published value {when}: it has no samples"
        if record.status is not Status.OK:
            reason = f" ({record.reason})" if record.reason else ""
            return f"is {record.status.value} {when}{reason}" if when == "now" else f"was {record.status.value} before"
    for what, was, now, may_differ in (
        ("format", old.format, new.format, across),
        ("shape", (old.K, old.N), (new.K, new.N), False),
        ("activations", old.activation_dtype, new.activation_dtype, across),
    ):
        if was != now and not may_differ:
            return f"its {what} was {was} and is {now}: these are two things"
    if min(len(old.blocks), len(new.blocks)) < _LEAST_BLOCKS:
        return f"has fewer than {_LEAST_BLOCKS} blocks on one side: too few for an interval"
    return None


def compare(
    old: Iterable[Record],
    new: Iterable[Record],
    policy: RelativeRule,
    *,
    noise: NoiseMap | None = None,
    chosen: Callable[[Record], bool] = lambda _record: True,
    across: bool = False,
) -> list[CellChange]:
    """Every chosen cell that either side holds, in the order of the new records; all are judged together.

    Cells that were measured right on neither side are left out. Baselines need not be chosen to be compared with.
    `across` compares a backend that changed its weight format or its activations all the same.
    """
    before, after = {_key(record): record for record in old}, {_key(record): record for record in new}
    olds, news = _sampled(before.values(), _OLD), _sampled(after.values(), _NEW)
    pairs: dict[tuple[str, str], dict[str, _Pair]] = {}
    seen: dict[Key, Evidence] = {}
    blocked: dict[Key, str] = {}
    for key in dict.fromkeys([*after, *before]):
        was, now = before.get(key), after.get(key)
        sides = [record for record in (was, now) if record is not None and chosen(record)]
        if all(record.status is not Status.OK for record in sides):
            continue
        obstacle = _obstacle(was, now, across=across)
        if obstacle is not None:
            blocked[key] = obstacle
            continue
        cell, backend, timer = key
        if (cell, timer) not in pairs:
            pairs[cell, timer] = _paired(olds[cell, timer], news[cell, timer])
        mates = pairs[cell, timer]
        seen[key] = _evidence(mates[backend], _common_baseline(mates, backend), policy, noise)
    verdicts = _judge_together(seen)
    return [
        CellChange(*key, before.get(key), after.get(key), *verdicts[key], evidence=seen[key])
        if key in seen
        else CellChange(*key, before.get(key), after.get(key), Judgement.INVALID, blocked[key])
        for key in dict.fromkeys([*after, *before])
        if key in seen or key in blocked
    ]


def _judge_together(seen: dict[Key, Evidence]) -> dict[Key, tuple[Judgement, str]]:
    slower = holm([found.chance_not_slower() for found in seen.values()])
    faster = holm([found.chance_not_faster() for found in seen.values()])
    return {
        key: judge(found, is_slower=slower[place], is_faster=faster[place])
        for place, (key, found) in enumerate(seen.items())
    }


def unlike(old: RunMeta, new: RunMeta) -> list[str]:
    """What makes two runs a comparison of machines or clock policies rather than of code; a sentence part each."""
    was, now = old.environment, new.environment
    pairs = (
        ("device", was.device_name, now.device_name),
        ("clock policy", old.clock_policy, new.clock_policy),
        ("duty cycle", old.duty_cycle, new.duty_cycle),
        ("SM count", was.sm_count, now.sm_count),
        ("memory", was.memory_bytes, now.memory_bytes),
        ("ECC", was.ecc, now.ecc),
        ("MIG", was.mig, now.mig),
        ("power limit", was.power_limit_w, now.power_limit_w),
    )
    return [
        f"{what} was {before} and is {after}"
        for what, before, after in pairs
        if before != after and before is not None and after is not None
    ]


def moved_packages(old: RunMeta, new: RunMeta) -> list[str]:
    """What else differs and may explain a change: driver, CUDA, packages; a sentence part each."""
    was, now = old.environment, new.environment
    cards = {was.device_uuid_hash, now.device_uuid_hash}
    other_card = ["the card is another one of the same model"] if len(cards) == 2 and None not in cards else []
    pairs = [("driver", was.driver, now.driver), ("CUDA", was.cuda, now.cuda)]
    pairs += [(name, was.packages.get(name), now.packages.get(name)) for name in sorted({*was.packages, *now.packages})]
    return other_card + [
        f"{what} {before or 'none'} → {after or 'none'}" for what, before, after in pairs if before != after
    ]
