"""The rules of a gate as a suite states them. They are parsed here and judged elsewhere, on stored records.

gate:
- {rule: absolute, select: {backend: marlin, layer: 72k_x_18k, M: {at_most: 32}}, at_least: 0.95}
- {rule: model, model: llama-2-70b, select: {backend: marlin, M: 16}, at_least: 2.5}
- {rule: knee, select: {backend: marlin, layer: 72k_x_18k}, at_least: 28}
- {rule: relative, select: {backend: marlin}, relative: 0.02, noise: 3}
- {rule: right}
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from marlin_bench.suite_values import (
    Batch,
    Batches,
    GroupSize,
    StrictModel,
    by_kind,
    expanded_batches,
    group_rows,
)

Pattern = Annotated[str, Field(min_length=1)]
Patterns = Annotated[
    Annotated[Pattern, Tag("one")] | Annotated[tuple[Pattern, ...], Field(strict=False, min_length=1), Tag("several")],
    by_kind(list="several", other="one"),
]
PositiveNumber = Annotated[float, Field(gt=0)]


class BatchRange(StrictModel):
    """Every M between two bounds, both included; one of them may be left out."""

    at_least: Batch | None = None
    at_most: Batch | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise PydanticCustomError("bounds", "is a range without bounds: give at_least, at_most or both")
        return self

    def holds(self, M: int) -> bool:
        """Whether M lies in the range."""
        return (self.at_least is None or self.at_least <= M) and (self.at_most is None or self.at_most >= M)


BatchSelection = Annotated[
    Annotated[Batch, Tag("one")] | Annotated[Batches, Tag("several")] | Annotated[BatchRange, Tag("range")],
    by_kind(list="several", mapping="range", other="one"),
]


class Select(StrictModel):
    """Which records a rule is about; what is left out selects everything. Texts are globs."""

    backend: Patterns | None = None
    """Backend, or several: `marlin`, `[marlin, marlin_hopper]`, `marlin*`."""
    layer: Patterns | None = None
    """Layer, or several: `72k_x_18k`, `llama-2-7b.*`."""
    M: BatchSelection | None = None
    """One M, a list as in the suite's `M`, or `{at_least: …, at_most: …}`."""
    group_size: GroupSize | None = None
    """A group size, or `column`."""
    format: Patterns | None = None
    """Weight format, or several: `int4_g128`, `int4_*`."""

    def matches(self, *, backend: str, layer: str, M: int, group_size: int | None, format: str) -> bool:
        """Whether a record with these fields is selected."""
        return (
            _any_matches(self.backend, backend)
            and _any_matches(self.layer, layer)
            and self._holds_batch(M)
            and (self.group_size is None or group_rows(self.group_size) == group_size)
            and _any_matches(self.format, format)
        )

    def _holds_batch(self, M: int) -> bool:
        match self.M:
            case None:
                return True
            case int():
                return M == self.M
            case BatchRange():
                return self.M.holds(M)
            case _:
                return M in expanded_batches(self.M)


def _any_matches(patterns: str | tuple[str, ...] | None, name: str) -> bool:
    if patterns is None:
        return True
    several = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern) for pattern in several)


class _Rule(StrictModel):
    select: Select = Field(default_factory=Select)
    """The records that the rule is about."""
    clocks: Literal["any", "locked"] = "any"
    """`locked`: records measured at free clocks are inconclusive."""


class _BoundedRule(_Rule):
    at_least: PositiveNumber | None = None
    """The value must not be below this."""
    at_most: PositiveNumber | None = None
    """The value must not be above this."""

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise PydanticCustomError("bounds", "needs exactly one of at_least and at_most")
        return self

    def admits(self, value: float) -> bool:
        """Whether `value` keeps the bound; NaN never does."""
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)


class AbsoluteRule(_BoundedRule):
    """Each selected cell's speed-up, as a fraction of the ideal one."""

    rule: Literal["absolute"]
    ideal: Annotated[
        Annotated[PositiveNumber, Tag("number")] | Annotated[Literal["computed"], Tag("word")],
        by_kind(text="word", other="number"),
    ] = "computed"
    """The ideal speed-up: computed for each cell from bytes and roofs, or a number such as 3.87."""


class ModelRule(_BoundedRule):
    """A model's speed-up: summed time of the baseline over summed time of the backend, over its linear layers."""

    rule: Literal["model"]
    model: str
    """Name of a model among the suite's layers."""


class KneeRule(_BoundedRule):
    """The M at which a selected backend leaves the memory roof, for each layer."""

    rule: Literal["knee"]


class RelativeRule(_Rule):
    """No selected cell slower than in the baseline run by more than the largest of three tolerances."""

    rule: Literal["relative"]
    relative: Annotated[float, Field(ge=0)] = 0.01
    """Tolerated slow-down as a fraction of the baseline's time."""
    absolute: Annotated[float, Field(ge=0)] = 2e-7
    """Tolerated slow-down in seconds."""
    noise: Annotated[float, Field(ge=0)] = 3.0
    """Tolerated slow-down in multiples of the A/A noise floor."""

    def tolerance(self, baseline_s: float, noise_floor_s: float) -> float:
        """Seconds that a cell may be slower than its baseline time: max(relative, absolute, noise x floor)."""
        return max(self.relative * baseline_s, self.absolute, self.noise * noise_floor_s)


class RightRule(_Rule):
    """Every selected record has the status `ok`."""

    rule: Literal["right"]


GateRule = Annotated[
    AbsoluteRule | ModelRule | KneeRule | RelativeRule | RightRule,
    Discriminator("rule"),
]
