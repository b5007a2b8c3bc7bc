"""A suite: one YAML file that is a whole experiment.

`load_suite` finds it (a path, or the name of a shipped suite), reads it strictly, resolves models to layers and
ranges to numbers, and refuses what cannot be measured. `Suite` keeps the text it came from, and a digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from marlin_bench.backends import TWIN_SUFFIX, backend_names
from marlin_bench.gate_rules import GateRule
from marlin_bench.models import Model, ModelError, builtin_model, read_config
from marlin_bench.suite_format import (
    LAYER_NAME,
    Clocks,
    ConfigLayers,
    DeviceMatch,
    Energy,
    ExplicitLayer,
    ModelLayers,
    Sampling,
    SuiteFile,
    schema_text,
    suite_schema,
)
from marlin_bench.suite_sentences import first_complaint
from marlin_bench.suite_text import Document, SuiteError, parse_document, read_text
from marlin_bench.suite_values import expanded_batches, group_rows

__all__ = [
    "Clocks",
    "DeviceMatch",
    "Energy",
    "GateRule",
    "Layer",
    "Sampling",
    "Suite",
    "SuiteError",
    "load_suite",
    "parse_suite",
    "schema_text",
    "shipped_suite_names",
    "shipped_suites_folder",
    "suite_schema",
]

SUFFIXES = (".yaml", ".yml")


class Layer(BaseModel):
    """One weight matrix W[K,N] of the sweep, under the name that cell ids use."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    K: int
    N: int


class Suite(BaseModel):
    """An experiment, resolved: every layer a (K, N), every M a number. Made by `load_suite` or `parse_suite`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str
    description: str
    device: DeviceMatch
    clocks: Clocks
    layers: tuple[Layer, ...]
    models: tuple[Model, ...]
    M: tuple[int, ...]
    group_sizes: tuple[int | None, ...]
    backends: tuple[str, ...]
    largest_M: dict[str, int]
    sampling: Sampling
    tune: Literal["quick", "full"]
    energy: Energy | None
    seed: int
    gate: tuple[GateRule, ...]
    text: str
    digest: str

    def backends_at(self, M: int) -> tuple[str, ...]:
        """The backends that are measured at a batch of M."""
        return tuple(name for name in self.backends if self.largest_M.get(name, M) >= M)

    @cached_property
    def layer_by_shape(self) -> dict[tuple[int, int], Layer]:
        """The layer that is measured for a shape (K, N): layers of models that share a shape are measured once."""
        return {(layer.K, layer.N): layer for layer in self.layers}


def shipped_suites_folder() -> Path:
    """Where the shipped suites lie: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "suites"
    return installed if installed.is_dir() else package.parent / "suites"


def shipped_suite_names() -> list[str]:
    """Names of the shipped suites."""
    return sorted(path.stem for path in shipped_suites_folder().glob("*.yaml"))


def load_suite(name_or_path: str | Path) -> Suite:
    """The suite at a path, or the shipped one called `smoke`, `smoke.yaml` or `suites/smoke.yaml`.

    Raises SuiteError: one sentence with file, line and key.
    """
    path = _find(str(name_or_path))
    return parse_suite(read_text(path), source=str(path), name=path.stem, folder=path.parent)


def _find(asked: str) -> Path:
    """The file that is meant: a bare word is a shipped suite first, anything else a path first."""
    given = Path(asked)
    shipped = shipped_suites_folder() / f"{given.stem if given.suffix in SUFFIXES else given.name}.yaml"
    may_be_shipped = given.parent in {Path(), Path("suites")}
    candidates = [given, *(Path(asked + suffix) for suffix in SUFFIXES if given.suffix not in SUFFIXES)]
    if may_be_shipped:
        candidates.insert(0 if asked == given.stem else len(candidates), shipped)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if given.exists():
        return given  # a folder or device: read_text says so
    near = get_close_matches(given.stem, shipped_suite_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(shipped_suite_names())}"
    raise SuiteError(asked, f"there is no such suite file, and no shipped suite of that name: {hint}")


def parse_suite(text: str, *, source: str, name: str, folder: Path | None = None) -> Suite:
    """The suite that `text` holds; `source` stands in errors, config files are found relative to `folder`."""
    document = parse_document(text, source)
    try:
        written = SuiteFile.model_validate(document.data)
    except ValidationError as error:
        raise first_complaint(error, document) from error
    limits = written.backend_limits
    _check_backends(tuple(limits), document)
    layers, models = _resolve_layers(written, document, folder or Path())
    group_sizes = tuple(group_rows(size) for size in written.group_sizes)
    _check_groups(layers, group_sizes, document)
    _check_blocks(written.sampling, document)
    resolved = [(layer.name, layer.K, layer.N) for _, layer in layers]
    return Suite(
        name=name,
        description=written.description,
        device=written.device,
        clocks=written.clocks_policy,
        layers=tuple(layer for _, layer in layers),
        models=models,
        M=expanded_batches(written.M),
        group_sizes=group_sizes,
        backends=tuple(limits),
        largest_M={backend: limit for backend, limit in limits.items() if limit is not None},
        sampling=written.sampling,
        tune=written.tune,
        energy=written.energy,
        seed=written.seed,
        gate=written.gate,
        text=text,
        digest=hashlib.sha256(json.dumps([text, resolved]).encode()).hexdigest()[:16],
    )


def _check_backends(names: tuple[str, ...], document: Document) -> None:
    known = backend_names()
    for index, name in enumerate(names):
        if name.removesuffix(TWIN_SUFFIX) not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise document.error(("backends", index), f"names the unknown backend '{name}': {hint}")


def _resolve_layers(
    written: SuiteFile, document: Document, folder: Path
) -> tuple[list[tuple[int, Layer]], tuple[Model, ...]]:
    """Every distinct layer with the index of its entry, and the models among the entries.

    Two explicit layers of one name or one shape are a mistake; a model's layer that is there already is not measured
    twice.
    """
    layers: list[tuple[int, Layer]] = []
    models: dict[str, Model] = {}
    for index, entry in enumerate(written.layers):
        if isinstance(entry, ExplicitLayer):
            layer = Layer(name=entry.name or f"{entry.K}x{entry.N}", K=entry.K, N=entry.N)
            _refuse_duplicate(layer, layers, document, ("layers", index))
            layers.append((index, layer))
            continue
        key = "model" if isinstance(entry, ModelLayers) else "config"
        try:
            model = _model_of(entry, folder)
        except ModelError as error:
            raise document.error(("layers", index, key), str(error)) from error
        if model.name in models:
            raise document.error(("layers", index, key), f"names the model {model.name} twice: remove one")
        models[model.name] = model
        layers.extend((index, layer) for layer in _new_layers(model, [known for _, known in layers]))
    return layers, tuple(models.values())


def _model_of(entry: ModelLayers | ConfigLayers, folder: Path) -> Model:
    if isinstance(entry, ModelLayers):
        return builtin_model(entry.model, entry.tensor_parallel)
    path = folder / entry.config
    name = entry.name or (path.resolve().parent.name if path.name == "config.json" else path.stem)
    if not re.match(LAYER_NAME, name):
        raise ModelError(f"the model would be called '{name}', which is no name for layers: give it a `name`")
    return read_config(path, name).model(entry.tensor_parallel)


def _new_layers(model: Model, known: list[Layer]) -> Iterator[Layer]:
    shapes = {(layer.K, layer.N) for layer in known}
    for layer in model.layers:
        if (layer.K, layer.N) not in shapes:
            shapes.add((layer.K, layer.N))
            yield Layer(name=f"{model.name}.{layer.name}", K=layer.K, N=layer.N)


def _refuse_duplicate(
    layer: Layer, layers: list[tuple[int, Layer]], document: Document, path: tuple[str | int, ...]
) -> None:
    for _, known in layers:
        if known.name == layer.name:
            raise document.error(path, f"there is a layer called {layer.name} already: rename or remove one")
        if (known.K, known.N) == (layer.K, layer.N):
            shape = f"K={layer.K} N={layer.N}"
            raise document.error(path, f"{layer.name} has the shape {shape} of {known.name}: list it once")


def _check_groups(layers: list[tuple[int, Layer]], group_sizes: tuple[int | None, ...], document: Document) -> None:
    for index, layer in layers:
        for group_size in group_sizes:
            if group_size is not None and layer.K % group_size:
                sentence = f"K {layer.K} of {layer.name} is not divisible by the group size {group_size}: change one"
                raise document.error(("layers", index, "K"), sentence)


def _check_blocks(sampling: Sampling, document: Document) -> None:
    if sampling.max_blocks < sampling.min_blocks:
        sentence = f"max_blocks {sampling.max_blocks} is below min_blocks {sampling.min_blocks}: raise it"
        raise document.error(("sampling", "max_blocks"), sentence)
