"""The values that suites and gate rules are written with: strictly typed, and helpful about misspelt keys."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

LARGEST_FEATURES = 2**20
LARGEST_BATCH = 2**16
UNKNOWN_KEY = "unknown_key"

TimerName = Literal["kernel", "cold", "host"]

Batch = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
Features = Annotated[int, Field(ge=1, le=LARGEST_FEATURES)]


class StrictModel(BaseModel):
    """Nothing is coerced, nothing unknown is dropped, nothing changes after loading.

    Tuples are written as YAML lists, so each says `strict=False` for itself; their elements stay strict.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    keys_of_siblings: ClassVar[tuple[str, ...]] = ()
    """Keys of the alternatives to this mapping, so that a misspelt one of theirs is recognised."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [*cls.model_fields, *cls.keys_of_siblings]
            for key in data:
                if key not in cls.model_fields:
                    near = get_close_matches(str(key), known, n=1)
                    hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
                    raise PydanticCustomError(UNKNOWN_KEY, "is no key here: {hint}", {"key": str(key), "hint": hint})
        return data


def by_kind(**tags: str) -> Discriminator:
    """Chooses an alternative by what is written: `text`, `mapping`, `list`, else `other` (the number, as a rule)."""

    def choose(value: Any) -> str:
        kind = "text" if isinstance(value, str) else "mapping" if isinstance(value, dict | BaseModel) else "other"
        if isinstance(value, list | tuple):
            kind = "list"
        return tags.get(kind, tags["other"])

    return Discriminator(choose)


class Pow2(StrictModel):
    """Powers of two from the first to the last, both included: `{pow2: [1, 1024]}`."""

    pow2: Annotated[tuple[Batch, Batch], Field(strict=False)]

    @model_validator(mode="after")
    def _is_a_range(self) -> Pow2:
        low, high = self.pow2
        for bound in self.pow2:
            if bound & (bound - 1):
                raise PydanticCustomError("range", "has the bound {bound}: it must be a power of two", {"bound": bound})
        if low > high:
            raise PydanticCustomError("range", "starts at {low} above its end {high}", {"low": low, "high": high})
        return self

    def expanded(self) -> list[int]:
        """Every value of the range."""
        low, high = self.pow2
        return [1 << exponent for exponent in range(low.bit_length() - 1, high.bit_length())]


BatchItem = Annotated[
    Annotated[Batch, Tag("number")] | Annotated[Pow2, Tag("range")],
    by_kind(mapping="range", other="number"),
]

Batches = Annotated[tuple[BatchItem, ...], Field(strict=False, min_length=1)]

GroupSize = Annotated[
    Annotated[Annotated[int, Field(ge=1)], Tag("number")] | Annotated[Literal["column"], Tag("word")],
    by_kind(text="word", other="number"),
]


def expanded_batches(items: tuple[int | Pow2, ...]) -> tuple[int, ...]:
    """Every M once, ascending."""
    values: set[int] = set()
    for item in items:
        values.update(item.expanded() if isinstance(item, Pow2) else [item])
    return tuple(sorted(values))


def group_rows(written: int | Literal["column"]) -> int | None:
    """A written group size as problems have it: None for one scale a column."""
    return None if written == "column" else written
