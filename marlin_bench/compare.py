"""Two runs, cell by cell: what changed, judged as judgement.py says, and why some cells cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from marlin_bench.bootstrap import Level
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.judgement import Evidence, Judgement, change, holm, judge
from marlin_bench.noise import NoiseMap
from marlin_bench.record import Origin, Record, RunMeta, Status
from marlin_bench.speedup import HEADLINE_BASELINE
from marlin_bench.statistics import block_medians

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
    def logs(self) -> dict[int, float]:
        """Logarithm of seconds a launch, by block."""
        medians = block_medians([block.times for block in self.record.blocks])
        return dict(zip((block.index for block in self.record.blocks), np.log(medians).tolist(), strict=True))

    @cached_property
    def time(self) -> Level:
        """Seconds a launch."""
        return Level(np.asarray(list(self.logs.values())), self.stream)

    @cached_property
    def cycles(self) -> Level | None:
        """SM cycles a launch; None unless every block knows its clock."""
        clocks = [block.sm_clock_hz for block in self.record.blocks]
        known = [clock for clock in clocks if clock is not None]
        return Level(self.time.samples + np.log(known), self.stream) if len(known) == len(clocks) else None

    def over(self, baseline: _Sampled) -> Level | None:
        """Time over the baseline's time of the same block; None for too few pairs."""
        pairs = [log - baseline.logs[index] for index, log in self.logs.items() if index in baseline.logs]
        return Level(np.asarray(pairs), self.stream) if len(pairs) >= _LEAST_BLOCKS else None


def _evidence(
    old: _Sampled,
    new: _Sampled,
    baselines: tuple[_Sampled, _Sampled] | None,
    policy: RelativeRule,
    noise: NoiseMap | None,
) -> Evidence:
    """What the samples of two `ok` records of one cell say."""
    locked = old.record.clocks_locked and new.record.clocks_locked
    cycles = None
    if not locked and old.cycles is not None and new.cycles is not None:
        cycles = change(old.cycles, new.cycles)
    paired, part, is_same, noisy = None, None, False, (old.time, new.time)
    if baselines is not None:
        part = change(baselines[0].time, baselines[1].time)
        is_same = baselines[0].record.backend_version == baselines[1].record.backend_version
        before, after = old.over(baselines[0]), new.over(baselines[1])
        if is_same and before is not None and after is not None:
            paired, noisy = change(before, after), (before, after)
    floor = max(level.noise for level in noisy)
    if noise is not None:
        floor = max(floor, noise.floor(new.record))
    typical = math.exp(old.time.median)
    return Evidence(
        time=change(old.time, new.time),
        cycles=cycles,
        paired=paired,
        baseline=None if baselines is None else baselines[1].record.backend,
        baseline_part=part,
        baseline_is_same=is_same,
        clocks_locked=locked,
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


def _common_baseline(
    old: dict[str, _Sampled], new: dict[str, _Sampled], backend: str
) -> tuple[_Sampled, _Sampled] | None:
    """The baseline that both sides of a cell hold: cublas_fp16, else the one that was fastest; never itself."""
    shared = [name for name, one in old.items() if one.record.baseline and name in new and name != backend]
    if not shared:
        return None
    name = min(shared, key=lambda one: (one != HEADLINE_BASELINE, old[one].time.median))
    return old[name], new[name]


def _obstacle(old: Record | None, new: Record | None) -> str | None:
    """Why two records cannot be compared, or None."""
    if old is None or new is None:
        return "was not measured before" if old is None else "was measured before, and is not now"
    for record, when in ((old, "before"), (new, "now")):
        if record.origin is Origin.PUBLISHED:
            return f"is a published value {when}: it has no samples"
        if record.status is not Status.OK:
            reason = f" ({record.reason})" if record.reason else ""
            return f"is {record.status.value} {when}{reason}" if when == "now" else f"was {record.status.value} before"
    for what, was, now in (
        ("format", old.format, new.format),
        ("shape", (old.K, old.N), (new.K, new.N)),
        ("activations", old.activation_dtype, new.activation_dtype),
    ):
        if was != now:
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
) -> list[CellChange]:
    """Every chosen cell that either side holds, in the order of the new records; all are judged together.

    Cells that were measured right on neither side are left out. Baselines need not be chosen to be compared with.
    """
    before, after = {_key(record): record for record in old}, {_key(record): record for record in new}
    olds, news = _sampled(before.values(), _OLD), _sampled(after.values(), _NEW)
    seen: dict[Key, Evidence] = {}
    blocked: dict[Key, str] = {}
    for key in dict.fromkeys([*after, *before]):
        was, now = before.get(key), after.get(key)
        sides = [record for record in (was, now) if record is not None and chosen(record)]
        if all(record.status is not Status.OK for record in sides):
            continue
        obstacle = _obstacle(was, now)
        if obstacle is not None:
            blocked[key] = obstacle
            continue
        cell, backend, timer = key
        mates = olds[cell, timer], news[cell, timer]
        baselines = _common_baseline(*mates, backend)
        seen[key] = _evidence(mates[0][backend], mates[1][backend], baselines, policy, noise)
    verdicts = _judge_together(seen)
    return [
        CellChange(*key, before.get(key), after.get(key), *verdicts[key], evidence=seen[key])
        if key in seen
        else CellChange(*key, before.get(key), after.get(key), Judgement.INVALID, blocked[key])
        for key in dict.fromkeys([*after, *before])
        if key in seen or key in blocked
    ]


def _judge_together(seen: dict[Key, Evidence]) -> dict[Key, tuple[Judgement, str]]:
    limits = [math.log1p(found.tolerance) for found in seen.values()]
    changes = [found.deciding for found in seen.values()]
    slower = holm([one.chance_not_above(limit) for one, limit in zip(changes, limits, strict=True)])
    faster = holm([one.reversed.chance_not_above(limit) for one, limit in zip(changes, limits, strict=True)])
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
    pairs = [("driver", was.driver, now.driver), ("CUDA", was.cuda, now.cuda)]
    pairs += [(name, was.packages.get(name), now.packages.get(name)) for name in sorted({*was.packages, *now.packages})]
    return [f"{what} {before or 'none'} → {after or 'none'}" for what, before, after in pairs if before != after]
