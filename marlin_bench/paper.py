"""The MARLIN paper's kernel figures (arXiv 2408.11743, PPoPP 2025) again: what is quoted, and what a run puts over it.

Figures 1 and 12 are speed-ups at free clocks, 10 at the locked base clock, 11 a roofline of square layers, 9 the summed
layers of whole models at M = 16. On a GPU other than the A10 the same figure carries that GPU's own ideal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from marlin_bench.model_times import LayerTimes, NoAnswerError, layer_times, model_time
from marlin_bench.models import builtin_model
from marlin_bench.panels import RooflinePanel, SpeedupPanel, roofline_panels, speedup_panels
from marlin_bench.published import a10_paper_folder, published_models
from marlin_bench.roofline import Roofs, roofs_from_ceilings
from marlin_bench.speedup import Row, rows
from marlin_bench.store import read_run

Figure = Literal[1, 9, 10, 11, 12]
FIGURES: tuple[Figure, ...] = (1, 9, 10, 11, 12)
SPEEDUP_FIGURES = {1: "fig01_fig12_boost", 10: "fig10_locked_885mhz", 12: "fig01_fig12_boost"}
_SOURCES = {1: ("Fig. 1",), 10: ("Fig. 10",), 12: ("Fig. 1", "Fig. 12"), 11: ("Fig. 11",)}
_PAPER_LAYER = (73728, 18432)
_MODEL_BATCH = 16
_LIKE = {"paper-llama-7b": "llama-2-7b", "paper-llama-13b": "llama-2-13b"}
"""Models of the same layers, up to 2.4 % wider: the paper rounds them to multiples of 512 and 256."""


@dataclass(frozen=True)
class PaperSpeedup:
    """Figure 1, 10 or 12: the quoted curves, and those of a run on its largest layer like the paper's."""

    quoted: SpeedupPanel
    measured: SpeedupPanel | None
    clocks: str


@dataclass(frozen=True)
class PaperRoofline:
    """Figure 11, one square layer: quoted and measured points with the roofs of each machine."""

    quoted: RooflinePanel
    measured: RooflinePanel | None


@dataclass(frozen=True, slots=True)
class ModelBar:
    """Figure 9: the speed-up of one model's summed layers on one GPU.

    `measured_on` names the model that a run's own answer is of, where that is one like it.
    """

    device: str
    model: str
    backend: str
    speedup: float
    published: bool
    measured_on: str | None = None


def _quoted_rows(folder: str, sources: Sequence[str]) -> tuple[list[Row], Roofs | None]:
    run = read_run(a10_paper_folder() / folder)
    roofs = roofs_from_ceilings(run.meta.ceilings)
    kept = [record for record in run.records if record.published is not None and record.published.source in sources]
    return rows(kept, roofs), roofs


def ideal_layer(sm_count: int) -> tuple[int, int]:
    """(K, N) of the layer that fills a GPU evenly, as the paper chooses it: 1024 x SMs by 256 x SMs."""
    return 1024 * sm_count, 256 * sm_count


def _like_the_paper(found: Sequence[Row], sm_count: int | None) -> list[Row]:
    """Rows of the paper's layer, else of this GPU's ideal layer; none where neither was measured."""
    wanted = [_PAPER_LAYER] + ([] if sm_count is None else [ideal_layer(sm_count)])
    for shape in wanted:
        chosen = [row for row in found if shape == (row.record.K, row.record.N) and row.record.group_size == 128]
        if chosen:
            return chosen
    return []


def paper_speedup(figure: Literal[1, 10, 12], found: Sequence[Row], sm_count: int | None) -> PaperSpeedup:
    """The quoted curves and a run's own; without sparse kernels in the figures that have none."""
    quoted, _ = _quoted_rows(SPEEDUP_FIGURES[figure], _SOURCES[figure])
    own = _like_the_paper(found, sm_count)
    if figure != 12:
        own = [row for row in own if not row.record.weight_format.is_sparse]
    panels = speedup_panels(own)
    published = quoted[0].record.published
    assert published is not None  # _quoted_rows keeps nothing else
    return PaperSpeedup(speedup_panels(quoted)[0], panels[0] if panels else None, published.clocks)


def paper_roofline(found: Sequence[Row], roofs: Roofs | None) -> list[PaperRoofline]:
    """Figure 11: a panel for each of the paper's square layers, the run's own points with it where it has some."""
    quoted, paper_roofs = _quoted_rows("fig11_roofline_boost", _SOURCES[11])
    result = []
    for panel in roofline_panels(quoted, paper_roofs):
        sizes = {row.record.K for row in quoted if f"K={row.record.K} " in panel.title}
        own = [row for row in found if row.record.K == row.record.N and row.record.K in sizes]
        own = [row for row in own if row.record.group_size == 128]
        measured = roofline_panels(own, roofs)
        result.append(PaperRoofline(panel, measured[0] if measured else None))
    return result


def paper_models(found: Sequence[Row], device: str) -> list[ModelBar]:
    """Figure 9: the paper's GPUs, then the run's own answer for each of its models and 4-bit backends."""
    bars = [ModelBar(bar.device, bar.model, bar.backend, bar.speedup, True) for bar in published_models()]
    times = layer_times(found, 128)
    return bars + [bar for name in dict.fromkeys(bar.model for bar in bars) for bar in _own_bars(name, times, device)]


def _own_bars(name: str, times: LayerTimes, device: str) -> list[ModelBar]:
    bars = []
    for backend in times.backends:
        if backend in times.baselines:
            continue
        for like in (name, _LIKE.get(name, name)):
            found = _own_speedup(like, times, backend)
            if found is not None:
                bars.append(ModelBar(device, name, backend, found, False, None if like == name else like))
                break
    return bars


def _own_speedup(name: str, times: LayerTimes, backend: str) -> float | None:
    try:
        answer = model_time(builtin_model(name), times, backend, _MODEL_BATCH)
    except NoAnswerError:
        return None
    return None if answer is None else answer.speedup
