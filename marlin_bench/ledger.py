"""Counted against measured bytes: what a profiler saw a product move, held against what it has to move.

The MARLIN paper's central claim (arXiv 2408.11743, section 3.4) is that weights cross the memory bus once while
activations are served from L2. A profiler counts bytes by level, not by operand, so the ledger takes the parts that are
beyond doubt off the totals: stored weights are counted once at both levels and the rest of the reads is charged to the
activations; outputs are counted once and the rest of the writes is charged to the reduction between CTAs. A weight read
twice therefore shows as an excess of DRAM reads, and is not hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from marlin_bench.problem import DTYPE_BITS, Problem, parse_format


class LedgerError(ValueError):
    """A profile that cannot be read; one sentence."""


class Profile(BaseModel):
    """What ncu counted over the kernels of one product, on cold caches; bytes, seconds, shares of 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = 1
    record_id: str
    device: str
    cell: str
    backend: str
    M: int
    N: int
    K: int
    group_size: int | None
    format: str
    activation_dtype: str
    kernels: list[str]
    profiler: str
    seconds: float
    dram_read: float
    dram_write: float
    l2_read: float
    l2_write: float
    tensor_pipe: float | None = None
    issue: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger: bytes that must move against bytes that did; None where nothing has to."""

    level: str
    operand: str
    counted: float
    measured: float | None

    @property
    def excess(self) -> float | None:
        """Measured over counted: 1 is each byte once."""
        return None if self.measured is None or not self.counted else self.measured / self.counted


def ledger(profile: Profile) -> list[Entry]:
    """The ledger of one product, DRAM first, totals before what they are split into."""
    problem = Problem(profile.M, profile.N, profile.K, profile.group_size)
    traffic = problem.traffic(parse_format(profile.format), DTYPE_BITS[profile.activation_dtype])
    stored = traffic.stored_weights
    parts = (
        ("weights", traffic.weights),
        ("scales", traffic.scales),
        ("zero points", traffic.zeros),
        ("metadata", traffic.metadata),
    )
    return [
        Entry("DRAM", "all reads", stored + traffic.activations, profile.dram_read),
        *(Entry("DRAM", name, counted, None) for name, counted in parts if counted),
        Entry("DRAM", "activations (reads beyond the weights)", traffic.activations, profile.dram_read - stored),
        Entry("DRAM", "output (all writes)", traffic.outputs, profile.dram_write),
        Entry("L2", "all reads", stored + traffic.activations, profile.l2_read),
        Entry("L2", "activations (reads beyond the weights)", traffic.activations, profile.l2_read - stored),
        Entry("L2", "all writes", traffic.outputs, profile.l2_write),
        Entry("L2", "reduction (writes beyond the output)", 0.0, profile.l2_write - traffic.outputs),
    ]


def measured_intensity(profile: Profile) -> float:
    """Dense-equivalent flop per byte that really crossed the memory bus."""
    flop = Problem(profile.M, profile.N, profile.K, profile.group_size).flop
    return flop / (profile.dram_read + profile.dram_write)


def measured_intensities(path: Path) -> dict[str, float]:
    """Flop per byte that really crossed the bus, by record id, of the profiles in a file."""
    return {profile.record_id: measured_intensity(profile) for profile in read_profiles(path)}


def write_profiles(profiles: Sequence[Profile], path: Path) -> None:
    """One JSON object a line, replacing the file; LedgerError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(profile.model_dump_json() + "\n" for profile in profiles), encoding="utf-8")
    except OSError as error:
        raise LedgerError(f"cannot write {path} ({error.strerror}): choose another file with -o") from error


def read_profiles(path: Path) -> list[Profile]:
    """What write_profiles wrote; LedgerError, one sentence, otherwise."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Profile.model_validate_json(line) for line in lines if line.strip()]
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise LedgerError(f"{path} holds no profiles: write it with `marlin-bench profile`") from error
