"""What a GPU that one does not have would do: its ideal by the datasheet, times the efficiency measured elsewhere.

The expected speed-up is ideal x (share of the ideal that the backend reached on the measured GPU at the same layer and
M). It is a prediction: a type of its own, which no store takes, marked as such wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from marlin_bench.datasheet import Datasheet, datasheets, find_datasheet
from marlin_bench.problem import parse_format
from marlin_bench.roofline import ideal_speedup
from marlin_bench.speedup import Row


class UnknownGpuError(ValueError):
    """A GPU of which nothing is known; one sentence."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One (layer, M, backend) on another GPU; `efficiency` is the share of the ideal measured on `measured_on`."""

    gpu: str
    measured_on: str
    layer: str
    M: int
    N: int
    K: int
    group_size: int | None
    backend: str
    ideal: float
    efficiency: float

    @property
    def expected(self) -> float:
        """The speed-up to expect: the ideal times the measured efficiency."""
        return self.ideal * self.efficiency


def find_gpu(name: str) -> Datasheet:
    """A GPU by its key (`a10`; of a family such as `a100` its largest memory), or from a YAML file of one's own."""
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name))
    sheet = find_datasheet(name)
    if sheet is not None:
        return sheet
    family = [one for one in datasheets() if one.key.startswith(f"{name.strip().lower()}-")]
    if family:
        return max(family, key=lambda one: one.memory_bandwidth)
    raise UnknownGpuError(f"there is no datasheet of '{name}': known are {', '.join(s.key for s in datasheets())}")


def _read(path: Path) -> Datasheet:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return Datasheet.model_validate(YAML(typ="safe").load(path))
    except OSError as error:
        raise UnknownGpuError(f"{path} cannot be read ({error.strerror})") from error
    except (YAMLError, ValidationError) as error:
        wanted = ", ".join(Datasheet.model_fields)
        raise UnknownGpuError(
            f"{path} does not describe a GPU: it needs {wanted}, as datasheet.yaml has them"
        ) from error


def predict(rows: Sequence[Row], gpu: Datasheet) -> list[Prediction]:
    """A prediction for every row that has a share of the ideal."""
    roofs = gpu.roofs()
    found = []
    for row in rows:
        record, share = row.record, row.fraction_of_ideal
        if share is None:
            continue
        dtype = record.activation_dtype
        ideal = ideal_speedup(record.problem, parse_format(record.format), roofs, dtype)
        if ideal is not None:
            found.append(
                Prediction(
                    gpu.key, record.device, record.layer, record.M, record.N, record.K, record.group_size,
                    record.backend, ideal, share,
                )
            )  # fmt: skip
    return found
