"""A suite → the cells to measure, in the order to measure them.

Cells of one layer and group size follow each other, M ascending, so that a worker packs each layer's weights once.
Selecting leaves cells out; it never changes how a cell is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from marlin_bench.problem import Format, Problem

if TYPE_CHECKING:
    from marlin_bench.suite import Layer, Sampling, Suite
    from marlin_bench.suite_values import TimerName

FormatOf = Callable[[str, Problem], Format]
"""Backend name and problem → how that backend stores the weights."""


class SelectionError(ValueError):
    """A selection that leaves nothing to measure, as one sentence."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What was asked for on the command line, in the terms of `plan`; None selects everything."""

    only: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None
    backends: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One problem with all the backends that are measured on it together; plain data that can cross a process."""

    id: str
    suite: str
    layer: str
    M: int
    N: int
    K: int
    group_size: int | None
    backends: tuple[str, ...]
    seed: int
    timers: tuple[TimerName, ...]

    @property
    def problem(self) -> Problem:
        """The product that the cell times."""
        return Problem(self.M, self.N, self.K, self.group_size)


def cell_id(layer: str, group_size: int | None, M: int) -> str:
    """The readable name of a cell within its suite: `72k_x_18k/g128/M16`."""
    return f"{layer}/g{'K' if group_size is None else group_size}/M{M}"


def plan(
    suite: Suite,
    *,
    only: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
) -> list[Cell]:
    """The cells of `suite` that are selected, in the order to measure them.

    `only` are globs on cell ids; `layers` are globs on layer names, shapes such as `4096x4096`, or names of the
    suite's models; `backends` names; `batches` values of M. What is None selects everything. Raises SelectionError
    when a given choice matches nothing.
    """
    chosen_layers = _choose_layers(suite, layers)
    chosen_backends = _choose_backends(suite, backends)
    chosen_batches = _choose_batches(suite, batches)
    cells = [
        Cell(
            id=cell_id(layer.name, group_size, M),
            suite=suite.name,
            layer=layer.name,
            M=M,
            N=layer.N,
            K=layer.K,
            group_size=group_size,
            backends=tuple(name for name in suite.backends_at(M) if name in chosen_backends),
            seed=suite.seed,
            timers=suite.sampling.timers,
        )
        for layer in chosen_layers
        for group_size in suite.group_sizes
        for M in chosen_batches
    ]
    cells = [cell for cell in cells if cell.backends]
    if not cells:
        raise SelectionError(f"the selection leaves nothing of suite {suite.name}: name a layer, a backend and an M")
    return cells if only is None else _choose_cells(cells, only)


def selected_cells(suite: Suite, selection: Selection) -> list[Cell]:
    """The cells a selection leaves; SelectionError when none."""
    return plan(
        suite,
        only=selection.only or None,
        layers=selection.layers or None,
        backends=selection.backends or None,
        batches=selection.batches or None,
    )


def _choose_cells(cells: list[Cell], asked: Sequence[str]) -> list[Cell]:
    for pattern in asked:
        if not any(fnmatchcase(cell.id, pattern) for cell in cells):
            raise SelectionError(f"no cell matches '{pattern}': a cell of this suite is called {cells[0].id}")
    chosen = [cell for cell in cells if any(fnmatchcase(cell.id, pattern) for pattern in asked)]
    if not chosen:
        raise SelectionError(f"the selection leaves no cell: a cell of this suite is called {cells[0].id}")
    return chosen


def _choose_layers(suite: Suite, asked: Sequence[str] | None) -> list[Layer]:
    if asked is None:
        return list(suite.layers)
    chosen: set[str] = set()
    for name in asked:
        found = {
            layer.name for layer in suite.layers if fnmatchcase(layer.name, name) or name == f"{layer.K}x{layer.N}"
        }
        for model in suite.models:
            if model.name == name:
                found |= {suite.layer_by_shape[layer.K, layer.N].name for layer in model.layers}
        if not found:
            offered = [*(layer.name for layer in suite.layers), *(model.name for model in suite.models)]
            raise SelectionError(f"suite {suite.name} has no layer '{name}': {_hint(name, offered)}")
        chosen |= found
    return [layer for layer in suite.layers if layer.name in chosen]


def _choose_backends(suite: Suite, asked: Sequence[str] | None) -> tuple[str, ...]:
    for name in asked or ():
        if name not in suite.backends:
            raise SelectionError(f"suite {suite.name} has no backend '{name}': {_hint(name, suite.backends)}")
    return tuple(name for name in suite.backends if asked is None or name in asked)


def _choose_batches(suite: Suite, asked: Sequence[int] | None) -> tuple[int, ...]:
    for M in asked or ():
        if M not in suite.M:
            raise SelectionError(f"suite {suite.name} has no M={M}: it has {', '.join(map(str, suite.M))}")
    return tuple(M for M in suite.M if asked is None or M in asked)


def _hint(name: str, offered: Sequence[str]) -> str:
    near = get_close_matches(name, offered, n=1)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(offered)}"


def backend_format(backend: str, problem: Problem) -> Format:
    """How a backend stores the weights of `problem`; loads the backend, and torch with it."""
    from marlin_bench.backends import load_backend

    return load_backend(backend).format(problem)


def launch_floors(
    cell: Cell, bandwidth: float, flops: float, *, format_of: FormatOf = backend_format
) -> dict[str, float]:
    """Seconds that one launch of each backend takes at least: bytes over `bandwidth` or flop over `flops` [1/s]."""
    problem = cell.problem
    return {name: launch_floor(problem, format_of(name, problem), bandwidth, flops) for name in cell.backends}


def launch_floor(problem: Problem, fmt: Format, bandwidth: float, flops: float) -> float:
    """Seconds that one product takes at least with weights in `fmt`: the roofline at `bandwidth` and `flops` [1/s]."""
    return max(problem.traffic(fmt).total / bandwidth, problem.executed_flop(fmt) / flops)


def floor_seconds(
    cell: Cell,
    bandwidth: float,
    flops: float,
    *,
    sampling: Sampling | None = None,
    format_of: FormatOf = backend_format,
) -> float:
    """Seconds of timed work that the cell needs at least, with every launch at the roofline.

    Without `sampling` one launch for each backend and timer; with it the suite's smallest number of blocks, each as
    long as a launch or as `block_seconds`, whichever is longer, within the backend's share of the cell's budget.
    """
    launches = launch_floors(cell, bandwidth, flops, format_of=format_of).values()
    if sampling is None:
        return sum(launches) * len(cell.timers)
    share = sampling.cell_seconds / len(cell.backends)
    blocks = (max(floor, sampling.block_seconds) for floor in launches)
    return sum(min(block * sampling.min_blocks, max(share, block)) for block in blocks) * len(cell.timers)
