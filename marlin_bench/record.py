"""What a measurement leaves behind: one record for each (cell, backend, timer), in SI base units.

A record cannot carry samples unless its status is `ok`, and a published one carries none at all. Nothing that can be
derived (speed-up, bandwidth, medians) is stored. docs/records.md explains every field.

History of the format: 1 — first version.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import field
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from marlin_bench.problem import Format, Problem, parse_format

SCHEMA_VERSION = 1

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SampleTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TimerName = Literal["kernel", "cold", "host"]
CeilingName = Literal[
    "hbm_read",
    "hbm_copy",
    "l2_read",
    "fp16_tensor",
    "bf16_tensor",
    "sparse_tensor",
    "launch",
    "ram_triad",
    "dense_fp32",
    "dense_bf16",
]


class Status(StrEnum):
    """How a backend came out of a cell."""

    OK = "ok"
    WRONG = "wrong"
    IMPOSSIBLE = "impossible"
    UNSUPPORTED = "unsupported"
    MISSING = "missing"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"


class Origin(StrEnum):
    """Whether the suite measured it or somebody published it."""

    MEASURED = "measured"
    PUBLISHED = "published"


class Flag(StrEnum):
    """What a reader of a valid record should know."""

    ABOVE_MEASURED_ROOF = "above_measured_roof"
    ABOVE_IDEAL = "above_ideal"
    NOT_CONVERGED = "not_converged"
    THROTTLED = "throttled"
    POWER_CAPPED = "power_capped"
    CLOCK_MOVED = "clock_moved"
    FEW_OPERAND_SETS = "few_operand_sets"
    CHANGED_SETTINGS = "changed_settings"


_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, **_STRICT)


class Telemetry(_Model):
    """What NVML said about one block; None where the device cannot tell."""

    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    temperature_margin_c: float | None = None
    event_reasons: list[str] = Field(default_factory=list)
    throttle_s: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)  # slots: a run holds a hundred thousand of these
class Block:
    """One round in which every backend of the cell was timed once."""

    index: int
    order: int
    times: Annotated[list[SampleTime], Field(min_length=1)]
    started_s: Seconds
    sm_clock_hz: float | None = None
    telemetry: Telemetry | None = None
    flags: list[Flag] = field(default_factory=list)


class Check(_Model):
    """Outputs against the float64 product of the dequantised weights (DESIGN 3.1)."""

    mean_error: float
    largest_error: float
    unrounded_error: float | None = None
    limit: float
    outputs: int
    nan: int
    untouched: int
    when: Literal["before", "after"]


class Rotation(_Model):
    """How many operand sets a round of launches cycles through, and the weight bytes they hold together."""

    sets: int
    bytes: int
    launches: int


class EnergyUse(_Model):
    """The energy phase of one backend in one cell: `calls` launches in `seconds` of busy time at a mean `power_w`.

    The whole board, static power included; joules a call are power_w · seconds / calls, a token takes an M-th of it.
    """

    calls: int
    seconds: float
    power_w: float

    @property
    def joules_a_call(self) -> float:
        """Mean energy of one launch."""
        return self.power_w * self.seconds / self.calls


class Tuning(_Model):
    """What a backend spent before it was timed: on the search for its configuration, and on its first call (JIT)."""

    effort: Literal["quick", "full"]
    seconds: Seconds
    first_call_s: Seconds | None = None
    tried: int = 0
    rejected: int = 0
    cached: bool = False


class Published(_Model):
    """Where a quoted value comes from."""

    speedup: float | None = None
    time_s: float | None = None
    source: str
    clocks: str


class Record(_Model):
    """One backend in one cell under one timer."""

    schema_version: int = SCHEMA_VERSION
    id: str
    run: str
    cell: str
    suite: str
    layer: str
    device: str
    origin: Origin = Origin.MEASURED
    timer: TimerName
    backend: str
    backend_version: str
    kernel_digest: str | None = None
    baseline: bool = False
    M: int
    N: int
    K: int
    group_size: int | None
    format: str
    activation_dtype: str
    output_dtype: str | None = None
    stored_bytes: int | None = None
    status: Status
    reason: str | None = None
    flags: list[Flag] = Field(default_factory=list)
    choice: dict[str, str] = Field(default_factory=dict)
    tuning: Tuning | None = None
    prepare_s: float | None = None
    activation_quantization_s: Seconds | None = None
    checks: list[Check] = Field(default_factory=list)
    canonical_error: float | None = None
    rotation: Rotation | None = None
    blocks: list[Block] = Field(default_factory=list)
    throttled_blocks: list[Block] = Field(default_factory=list)
    converged: bool | None = None
    cell_power_w: float | None = None
    energy: EnergyUse | None = None
    clocks_locked: bool = False
    profile: Literal["burst", "sustained"] = "burst"
    seed: int = 0
    isolated: bool = False
    published: Published | None = None

    @model_validator(mode="after")
    def _samples_only_when_right(self) -> Record:
        if (self.blocks or self.throttled_blocks) and self.status is not Status.OK:
            raise ValueError(f"a record with status {self.status} cannot carry samples")
        if self.origin is Origin.PUBLISHED and (self.blocks or self.checks or self.published is None):
            raise ValueError("a published record quotes a source and has neither samples nor checks")
        if self.origin is Origin.MEASURED and self.published is not None:
            raise ValueError("a measured record cannot quote a published value")
        if self.status is Status.OK and self.origin is Origin.MEASURED and not self.blocks:
            raise ValueError("a measured record with status ok needs samples")
        return self

    @property
    def problem(self) -> Problem:
        """The product that was timed."""
        return _problem(self.M, self.N, self.K, self.group_size)

    @property
    def weight_format(self) -> Format:
        """How the backend stored the weights."""
        return parse_format(self.format)

    @property
    def times(self) -> list[float]:
        """Every sample, in seconds a launch, in the order taken."""
        return [time for block in self.blocks for time in block.times]

    @property
    def sm_clock_hz(self) -> float | None:
        """Median SM clock over the blocks, None where no block has one."""
        clocks = sorted(block.sm_clock_hz for block in self.blocks if block.sm_clock_hz is not None)
        return clocks[len(clocks) // 2] if clocks else None


@lru_cache(maxsize=8192)
def _problem(M: int, N: int, K: int, group_size: int | None) -> Problem:
    """The records of one cell share their product: every row asks for it several times."""
    return Problem(M, N, K, group_size)


class Ceiling(_Model):
    """A measured limit of the machine, with the SM clock it was seen at.

    `value` is in bytes/s for memory (hbm_read, hbm_copy, l2_read, ram_triad), flop/s for compute (fp16_tensor,
    bf16_tensor, sparse_tensor, dense_fp32, dense_bf16) and seconds for `launch`. It is the best of several shapes
    and kernels; `detail` names the one that won.
    """

    name: CeilingName
    value: float
    sm_clock_hz: float | None = None
    detail: str = ""


class Environment(_Model):
    """Everything about the machine and the code that can move a number; None where it cannot be read."""

    device_name: str
    device_kind: Literal["cuda", "cpu"]
    device_uuid_hash: str | None = None
    capability: str | None = None
    sm_count: int | None = None
    max_sm_clock_hz: float | None = None
    memory_bytes: int | None = None
    memory_bandwidth: float | None = None
    l2_bytes: int | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence: bool | None = None
    power_limit_w: float | None = None
    driver: str | None = None
    cuda: str | None = None
    cpu: str
    cpu_threads: int
    python: str
    packages: dict[str, str] = {}
    settings: dict[str, str] = {}
    commit: str
    dirty: bool | None
    code_digest: str


class RunMeta(_Model):
    """The head of a run folder, run.json: the experiment as it was asked for and the machine it ran on."""

    schema_version: int = SCHEMA_VERSION
    run: str
    suite: str
    suite_text: str
    suite_digest: str
    origin: Origin = Origin.MEASURED
    started: str
    clock_policy: str = "observe"
    duty_cycle: float = 1.0
    locked_sm_hz: float | None = None
    locked_memory_hz: float | None = None
    environment: Environment
    ceilings: list[Ceiling] = []
    cells: int
    timed_s: float = 0.0
    wall_s: float = 0.0

    def ceiling(self, name: CeilingName) -> Ceiling | None:
        """The ceiling called `name`, or None when this run did not measure it."""
        return next((ceiling for ceiling in self.ceilings if ceiling.name == name), None)


def record_id(device: str, cell: str, backend: str, timer: str) -> str:
    """Stable digest (12 hex digits) of what was measured: the same in every run of the same suite cell."""
    return hashlib.sha256("\0".join((device, cell, backend, timer)).encode()).hexdigest()[:12]


def schema_text() -> str:
    """JSON Schema of one line of records.jsonl, as shipped in docs/record.schema.json."""
    return json.dumps(Record.model_json_schema(), indent=1) + "\n"
