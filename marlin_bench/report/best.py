"""Who is best where: for every layer and batch the fastest kernel of each kind, and where a peer beats ours, said so.

Kernels compete with those that compute the same: 4-bit weights with 16-bit activations; 2:4-sparse weights, which leave
half of the matrix out; 8-bit activations, which round the other operand too. Ours are those whose record carries the
digest of CUDA sources of this project.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from marlin_bench.speedup import Row, without_companions
from marlin_bench.statistics import Interval

LEAST_BITS_OF_A_16_BIT_FORMAT = 16


class Contest(StrEnum):
    """What kernels have in common that may be compared."""

    FOUR_BIT = "4-bit weights"
    SPARSE = "2:4-sparse 4-bit weights"
    EIGHT_BIT = "8-bit activations"


def contest_of(row: Row) -> Contest | None:
    """Which contest a row takes part in; None for baselines, quoted values and what has no speed-up."""
    record = row.record
    if record.baseline or record.published is not None or row.speedup is None or record.timer != "kernel":
        return None
    fmt = record.weight_format
    if fmt.code_bits >= LEAST_BITS_OF_A_16_BIT_FORMAT:
        return None
    if row.activation_bits == 8:
        return Contest.EIGHT_BIT
    return Contest.SPARSE if fmt.is_sparse else Contest.FOUR_BIT


@dataclass(frozen=True, slots=True)
class Winner:
    """The fastest row of one layer, batch and contest, and the fastest of our own."""

    best: Row
    own: Row | None
    is_contested: bool
    """Whether anybody else's kernel took part."""

    @property
    def is_own(self) -> bool:
        """Whether ours is the fastest."""
        return self.own is self.best

    @property
    def is_level(self) -> bool:
        """Whether ours is not the fastest by its median, and the intervals of the two overlap."""
        if self.own is None or self.is_own:
            return False
        first, second = _speedup(self.best), _speedup(self.own)
        return second.high >= first.low

    @property
    def is_beaten(self) -> bool:
        """Whether a peer is faster than ours beyond the intervals."""
        return self.own is not None and not self.is_own and not self.is_level


def _speedup(row: Row) -> Interval:
    if row.speedup is None:
        raise ValueError(f"{row.record.backend} in {row.record.cell} has no speed-up")
    return row.speedup


@dataclass(frozen=True, slots=True)
class Standing:
    """One layer in one contest: winners by M."""

    layer: str
    group_size: int | None
    contest: Contest
    winners: dict[int, Winner]


def standings(rows: Iterable[Row]) -> list[Standing]:
    """Layers in order of appearance, contests in theirs; only those in which somebody took part."""
    gathered: dict[tuple[str, int | None], dict[Contest, dict[int, list[Row]]]] = {}
    for row in without_companions(rows):
        contest = contest_of(row)
        if contest is not None:
            layer = gathered.setdefault((row.record.layer, row.record.group_size), {})
            layer.setdefault(contest, {}).setdefault(row.record.M, []).append(row)
    return [
        Standing(layer, group, contest, {M: _winner(found) for M, found in sorted(contests[contest].items())})
        for (layer, group), contests in gathered.items()
        for contest in Contest
        if contest in contests
    ]


def _winner(found: Sequence[Row]) -> Winner:
    ordered = sorted(found, key=lambda row: -_speedup(row).value)
    own = next((row for row in ordered if row.record.kernel_digest is not None), None)
    return Winner(ordered[0], own, any(row.record.kernel_digest is None for row in found))


def tally(found: Iterable[Standing]) -> str:
    """One sentence on the dense 4-bit contest: how often ours is beaten, and by whom, level, and the fastest.

    Only cells in which somebody else took part count.
    """
    winners = [
        winner
        for one in found
        if one.contest is Contest.FOUR_BIT
        for winner in one.winners.values()
        if winner.is_contested
    ]
    if not winners:
        return "No kernel but ours was timed on 4-bit weights and 16-bit activations."
    beaten: dict[str, int] = {}
    for winner in winners:
        if winner.is_beaten:
            beaten[winner.best.record.backend] = beaten.get(winner.best.record.backend, 0) + 1
    own, level = (sum(getattr(winner, name) for winner in winners) for name in ("is_own", "is_level"))
    sentence = f"Of {len(winners)} cells of 4-bit weights and 16-bit activations a peer is faster than our kernels in "
    by = ", ".join(f"{name} {count}" for name, count in sorted(beaten.items(), key=lambda item: -item[1]))
    sentence += f"{sum(beaten.values())} ({by})" if beaten else "none"
    if level:
        sentence += f", level with them within the intervals in {level}"
    return f"{sentence}; ours are the fastest in {own}."


def share(row: Row) -> float | None:
    """Share of the ideal speed-up, where that is known."""
    found = row.fraction_of_ideal
    return found if found is not None and math.isfinite(found) else None
