"""What vendors promise about their GPUs: datasheet.yaml, each value with its source."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from marlin_bench.record import Ceiling
from marlin_bench.roofline import Roofs, roofs_from_ceilings


class Datasheet(BaseModel):
    """One GPU: bytes/s, dense FP16 tensor flop/s, and the SM clock in Hz at which the latter holds.

    `capability` says which kernels run there; None where nobody said.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    names: list[str]
    memory_bandwidth: float
    fp16_tensor: float
    clock_hz: float
    sm_count: int
    flop_per_sm_clock: int
    capability: tuple[int, int] | None = None

    def ceilings(self) -> list[Ceiling]:
        """The promises in the form of measured ceilings, so that everything that takes those takes these."""
        detail = "vendor datasheet"
        return [
            Ceiling(name="hbm_read", value=self.memory_bandwidth, detail=detail),
            Ceiling(name="fp16_tensor", value=self.fp16_tensor, sm_clock_hz=self.clock_hz, detail=detail),
            Ceiling(name="bf16_tensor", value=self.fp16_tensor, sm_clock_hz=self.clock_hz, detail=detail),
            # every card here has sparse tensor cores, promised at twice the dense rate
            Ceiling(name="sparse_tensor", value=2 * self.fp16_tensor, sm_clock_hz=self.clock_hz, detail=detail),
        ]

    def roofs(self) -> Roofs:
        """The promised roofs at the clock of the datasheet."""
        roofs = roofs_from_ceilings(self.ceilings())
        assert roofs is not None  # a datasheet always has a memory rate
        return replace(roofs, source="datasheet")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    gpus: list[Datasheet]


@cache
def datasheets() -> tuple[Datasheet, ...]:
    """Every GPU in datasheet.yaml."""
    from ruamel.yaml import YAML

    path = Path(__file__).with_name("datasheet.yaml")
    return tuple(_File.model_validate(YAML(typ="safe").load(path)).gpus)


def find_datasheet(name: str) -> Datasheet | None:
    """The datasheet of a GPU by its key (`a10`) or by the name its driver reports; None when there is none."""
    wanted = name.strip().lower()
    for sheet in datasheets():
        if wanted == sheet.key or wanted in (known.lower() for known in sheet.names):
            return sheet
    return None
