"""The command line's selection applied to stored records, with the same meaning as in planning a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from marlin_bench.models import Model
from marlin_bench.plan import Selection, SelectionError
from marlin_bench.record import Record, RunMeta

ModelShapes = Callable[[str], frozenset[tuple[int, int]]]
"""A model's name → the (K, N) of its layers; empty where the suite has no such model."""


def suite_models(meta: RunMeta) -> tuple[Model, ...]:
    """The models that the stored suite names, as it resolves them: a run keeps the text of its suite.

    None where another version wrote it or its model files are elsewhere: names and shapes still select.
    """
    from marlin_bench.suite import SuiteError, parse_suite

    try:
        return parse_suite(meta.suite_text, source=meta.run, name=meta.suite).models
    except SuiteError:
        return ()


def model_shapes_of(meta: RunMeta) -> ModelShapes:
    """Models by name, as the stored suite resolves them."""

    def shapes(name: str) -> frozenset[tuple[int, int]]:
        models = suite_models(meta)
        return frozenset((layer.K, layer.N) for model in models if model.name == name for layer in model.layers)

    return shapes


def select(records: Iterable[Record], selection: Selection, model_shapes: ModelShapes) -> list[Record]:
    """The records that `selection` leaves, in order; SelectionError, one sentence, for a choice that matches none.

    A chosen backend keeps no other record: speed-ups must be taken before selecting.
    """
    records = list(records)
    chosen = records
    if selection.only is not None:
        only = selection.only
        _refuse_idle(only, records)
        chosen = [record for record in chosen if any(fnmatchcase(_cell(record), pattern) for pattern in only)]
    if selection.layers is not None:
        layers = _layers(records, selection.layers, model_shapes)
        chosen = [record for record in chosen if record.layer in layers]
    if selection.backends is not None:
        _refuse_unknown("backend", selection.backends, [record.backend for record in records])
        chosen = [record for record in chosen if record.backend in selection.backends]
    if selection.batches is not None:
        _refuse_unknown("M", selection.batches, sorted(record.M for record in records))
        chosen = [record for record in chosen if record.M in selection.batches]
    if records and not chosen:
        raise SelectionError("no record of this run matches the whole selection: leave out a part of it")
    return chosen


def _cell(record: Record) -> str:
    """The planned cell of a record: a backend of its own process is stored under `<cell>+<backend>`."""
    return record.cell.partition("+")[0]


def _refuse_idle(patterns: Iterable[str], records: list[Record]) -> None:
    for pattern in patterns:
        if records and not any(fnmatchcase(_cell(record), pattern) for record in records):
            raise SelectionError(f"no cell matches '{pattern}': a cell of this run is called {_cell(records[0])}")


def _layers(records: list[Record], asked: tuple[str, ...], model_shapes: ModelShapes) -> set[str]:
    chosen: set[str] = set()
    for name in asked:
        found = {
            record.layer for record in records if fnmatchcase(record.layer, name) or name == f"{record.K}x{record.N}"
        }
        if not found:
            shapes = model_shapes(name)
            found = {record.layer for record in records if (record.K, record.N) in shapes}
        if not found:
            offered = ", ".join(dict.fromkeys(record.layer for record in records))
            raise SelectionError(f"this run has no layer '{name}': it has {offered}")
        chosen |= found
    return chosen


def _refuse_unknown(what: str, asked: Iterable[str | int], known: list[str] | list[int]) -> None:
    for value in asked:
        if value not in known:
            raise SelectionError(f"this run has no {what} {value}: it has {', '.join(map(str, dict.fromkeys(known)))}")
