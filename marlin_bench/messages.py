"""What parent and worker say to each other: one JSON line a message, plain data that could cross a host."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from marlin_bench.record import Block, Ceiling, Check, Environment, Record, Status, TimerName
from marlin_bench.suite_format import Sampling


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeldClocks(_Message):
    """What was done to the clocks for this run."""

    locked: bool = False
    profile: Literal["burst", "sustained"] = "burst"


class Open(_Message):
    """Open the device this process was started for."""

    kind: Literal["open"] = "open"
    device: Literal["cpu", "cuda"]


class MeasureCeilings(_Message):
    """Measure the roofs."""

    kind: Literal["ceilings"] = "ceilings"


class MeasureClock(_Message):
    """Put load on the SMs and measure their clock."""

    kind: Literal["clock"] = "clock"


class MeasureCell(_Message):
    """Measure (or only verify) some backends of one cell."""

    kind: Literal["cell"] = "cell"
    cell: str
    suite: str
    layer: str
    M: int
    N: int
    K: int
    group_size: int | None
    seed: int
    timers: tuple[TimerName, ...]
    backends: tuple[str, ...]
    baselines: tuple[str, ...]
    sampling: Sampling
    effort: Literal["quick", "full"]
    run: str
    device: str
    clocks: HeldClocks
    isolated: bool
    first_block: int
    clock_origin: float
    energy_seconds: float | None
    verify_only: bool


class Finish(_Message):
    """End the cell in progress after its present block; what is measured is kept."""

    kind: Literal["finish"] = "finish"


Request = Annotated[Open | MeasureCeilings | MeasureClock | MeasureCell | Finish, Field(discriminator="kind")]


class Ready(_Message):
    """The device is open."""

    kind: Literal["ready"] = "ready"
    environment: Environment
    device_uuid: str | None


class CeilingsDone(_Message):
    """The measured roofs."""

    kind: Literal["ceilings_done"] = "ceilings_done"
    ceilings: list[Ceiling]


class ClockMeasured(_Message):
    """The SM clock under load; None where the device has no probe."""

    kind: Literal["clock_measured"] = "clock_measured"
    hertz: float | None


class PhaseEntered(_Message):
    """A backend begins something: it is to blame until the next message."""

    kind: Literal["phase"] = "phase"
    backend: str
    phase: str


class BlockDone(_Message):
    """A finished turn."""

    kind: Literal["block"] = "block"
    timer: TimerName
    backend: str
    block: Block


class RecordDone(_Message):
    """A finished record."""

    kind: Literal["record"] = "record"
    record: Record


class Verified(_Message):
    """A right answer, where only that was asked."""

    kind: Literal["verified"] = "verified"
    backend: str
    check: Check


class CellDone(_Message):
    """All backends of the request are through."""

    kind: Literal["cell_done"] = "cell_done"
    timed_s: float


class Failed(_Message):
    """The worker cannot go on; it ends after this."""

    kind: Literal["failed"] = "failed"
    status: Status
    reason: str


Reply = Annotated[
    Ready | CeilingsDone | ClockMeasured | PhaseEntered | BlockDone | RecordDone | Verified | CellDone | Failed,
    Field(discriminator="kind"),
]

REQUEST: TypeAdapter[Request] = TypeAdapter(Request)
REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)
