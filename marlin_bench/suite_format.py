"""What may be written in a suite file: every key, its type, its limits and its default, each once.

`SuiteFile` is the file as it stands; `marlin_bench.suite.Suite` is what it means. docs/suites.md explains each key.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from marlin_bench.gate_rules import GateRule
from marlin_bench.suite_values import Batch, Batches, Features, GroupSize, StrictModel, TimerName, by_kind

LAYER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Layer names are parts of cell ids, which are selected by glob: no slash, no blank, no glob character."""

ClockPolicy = Literal["observe", "lock", "require"]
LayerName = Annotated[str, Field(pattern=LAYER_NAME, max_length=80)]
Megahertz = Annotated[int, Field(ge=1, le=10_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
TensorParallel = Annotated[int, Field(ge=1, le=64)]


def _distinct(items: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, item in enumerate(items):
        if item in items[:index]:
            raise PydanticCustomError("repeated", "names {item} twice: remove one", {"item": str(item)})
    return items


class DeviceMatch(StrictModel):
    """The device that the suite is written for; a run on another one is refused."""

    kind: Literal["cuda", "cpu"]
    """`cuda` or `cpu`."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Part of the device's name, such as `A10`; any device of the kind when left out."""

    def matches(self, kind: str, name: str) -> bool:
        """Whether a device is the one meant: same kind, and `name` among the words of its name.

        Words, so that `A10` is not found in `NVIDIA A100`.
        """
        if kind != self.kind:
            return False
        if self.name is None:
            return True
        wanted, words = self.name.lower().split(), name.lower().replace("-", " ").split()
        return any(words[start : start + len(wanted)] == wanted for start in range(len(words)))


class Clocks(StrictModel):
    """What happens to the clocks: `observe` reads them, `lock` sets and restores, `require` fails without rights."""

    policy: ClockPolicy = "observe"
    """`observe`, `lock` or `require`."""
    sm_mhz: Annotated[
        Annotated[Megahertz, Tag("number")] | Annotated[Literal["base", "max"], Tag("word")],
        by_kind(text="word", other="number"),
    ] = "base"
    """SM clock to lock: MHz, or the card's own `base` or `max` clock; without meaning under `observe`."""
    memory_mhz: Megahertz | None = None
    """Memory clock to lock in MHz; left alone when null."""


class ExplicitLayer(StrictModel):
    """One weight matrix: K input features, N output features."""

    keys_of_siblings: ClassVar[tuple[str, ...]] = ("model", "config", "tensor_parallel")

    name: LayerName | None = None
    """Name in tables and cell ids; `<K>x<N>` when left out."""
    K: Features
    """Input features (the reduction)."""
    N: Features
    """Output features."""


class ModelLayers(StrictModel):
    """All linear layers of a built-in model, named `<model>.<layer>`."""

    model: str
    """Name of a built-in model, such as `llama-2-7b`."""
    tensor_parallel: TensorParallel = 1
    """GPUs that share each layer."""


class ConfigLayers(StrictModel):
    """All linear layers of a Hugging Face model, from its config.json."""

    config: Annotated[str, Field(min_length=1)]
    """Path of the config.json, relative to the suite file."""
    name: LayerName | None = None
    """Name of the model; that of the file's folder when left out."""
    tensor_parallel: TensorParallel = 1
    """GPUs that share each layer."""


def _layer_kind(value: Any) -> str:
    if isinstance(value, dict | StrictModel):
        keys = value if isinstance(value, dict) else type(value).model_fields
        return "model_layers" if "model" in keys else "config_layers" if "config" in keys else "one_layer"
    return "one_layer"


LayerEntry = Annotated[
    Annotated[ExplicitLayer, Tag("one_layer")]
    | Annotated[ModelLayers, Tag("model_layers")]
    | Annotated[ConfigLayers, Tag("config_layers")],
    Discriminator(_layer_kind),
]


class LimitedBackend(StrictModel):
    """A backend that is measured up to some batch only: a kernel for decoding takes minutes at prefill sizes."""

    name: str
    """Its name, see `marlin-bench list backends`."""
    up_to_M: Batch
    """The largest M at which it is measured."""


BackendEntry = Annotated[
    Annotated[str, Tag("word")] | Annotated[LimitedBackend, Tag("limited")],
    by_kind(text="word", other="limited"),
]


def _distinct_backends(entries: tuple[str | LimitedBackend, ...]) -> tuple[str | LimitedBackend, ...]:
    _distinct(tuple(entry if isinstance(entry, str) else entry.name for entry in entries))
    return entries


class Sampling(StrictModel):
    """How each backend of a cell is timed."""

    timers: Annotated[tuple[TimerName, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)] = ("kernel",)
    """`kernel` (headline: launches over rotated operands), `cold` (flushed caches), `host` (wall time of a call)."""
    min_blocks: Annotated[int, Field(ge=3, le=100_000)] = 30
    """Blocks before a narrow interval may end the sampling."""
    max_blocks: Annotated[int, Field(ge=3, le=100_000)] = 300
    """Blocks after which a cell ends even when its interval is still wide."""
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.005
    """Relative width of the 95 % interval of the paired ratio that is narrow enough."""
    block_seconds: Seconds = 0.005
    """Time that one backend takes in one block, unless a round over its operand sets is longer."""
    cell_seconds: Seconds = 10.0
    """Timed seconds that a cell may take for each timer, shared evenly by its backends; it then ends unconverged."""
    duty_cycle: Annotated[float, Field(ge=0.01, le=1)] = 1.0
    """Share of the time in which the card works: below 1 it rests after each turn, whose clock is then its own."""
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Untimed work in the cell's rotation before its first block, for clocks to fall to what the card can keep up."""
    timeout_seconds: Seconds = 120.0
    """A backend that needs longer in one cell is ended and recorded as `timeout`."""


class Energy(StrictModel):
    """A phase of its own that measures energy for each call."""

    cells: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Globs on cell ids, such as `72k_x_18k/*/M16`."""
    seconds: Seconds = 2.0
    """How long each backend runs."""


class SuiteFile(StrictModel):
    """A marlin-bench suite: one file is one experiment."""

    description: str = ""
    """What the suite is for, in a line."""
    device: DeviceMatch
    """The device that the suite is written for."""
    clocks: Annotated[
        Annotated[ClockPolicy, Tag("word")] | Annotated[Clocks, Tag("policy_and_clocks")],
        by_kind(text="word", other="policy_and_clocks"),
    ] = Field(default_factory=Clocks)
    """What happens to the clocks; a word such as `observe` is short for `{policy: observe}`."""
    layers: Annotated[tuple[LayerEntry, ...], Field(strict=False, min_length=1)]
    """Weight matrices: `{name, K, N}`, `{model: llama-2-7b}` or `{config: path/to/config.json}`."""
    M: Batches
    """Batch rows: numbers and ranges such as `{pow2: [1, 1024]}`; each M is measured once."""
    group_sizes: Annotated[tuple[GroupSize, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)] = (128,)
    """Weights that share a scale: numbers, or `column` for one scale a column."""
    backends: Annotated[tuple[BackendEntry, ...], Field(strict=False, min_length=1), AfterValidator(_distinct_backends)]
    """Kernels and baselines by name; `{name: tinygemm, up_to_M: 64}` leaves larger batches out."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How each backend of a cell is timed."""
    tune: Literal["quick", "full"] = "quick"
    """How long backends may search for their configuration, untimed."""
    energy: Energy | None = None
    """Measure energy for these cells; off when left out."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the operands and of the order within blocks."""
    gate: Annotated[tuple[GateRule, ...], Field(strict=False)] = ()
    """Rules that `marlin-bench gate` judges a run by."""

    @property
    def backend_limits(self) -> dict[str, int | None]:
        """Every backend's name with the largest M it is measured at, None for any."""
        return {
            entry if isinstance(entry, str) else entry.name: None if isinstance(entry, str) else entry.up_to_M
            for entry in self.backends
        }

    @property
    def clocks_policy(self) -> Clocks:
        """The clocks in their long form."""
        return Clocks(policy=self.clocks) if isinstance(self.clocks, str) else self.clocks


def suite_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a suite file, for completion in editors; shipped as suites/suite.schema.json."""
    schema = SuiteFile.model_json_schema()
    for model in _models_below(StrictModel):
        described = schema if model is SuiteFile else schema["$defs"].get(model.__name__)
        for name, sentence in _attribute_docstrings(model).items() if described else ():
            described["properties"][name]["description"] = sentence
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The text of suites/suite.schema.json."""
    return json.dumps(suite_schema(), indent=2) + "\n"


def _models_below(model: type[StrictModel]) -> Iterator[type[StrictModel]]:
    for child in model.__subclasses__():
        yield child
        yield from _models_below(child)


def _attribute_docstrings(model: type[StrictModel]) -> dict[str, str]:
    """The docstring below each field, inherited ones included.

    Pydantic could collect them itself, but does so at import, and reading the sources costs 0.2 s.
    """
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, StrictModel):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))) if field.target.id in model.model_fields:
                        found[field.target.id] = " ".join(text.split())
    return found
