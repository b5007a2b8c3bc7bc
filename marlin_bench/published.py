"""Quoted figures → run folders of origin `published`, and the quoted values of whole models.

results/published/a10_paper/figures.yaml holds what the MARLIN paper prints; `python -m marlin_bench.published` writes
the run folders beside it, and a test holds both the same. The roofs of such a run are the ones the paper draws, so
that its ideal line is the paper's. A published record has no samples: it can be shown, drawn and judged by rules that
need no evidence, and is never the baseline of a gate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from marlin_bench.device import slug
from marlin_bench.plan import cell_id
from marlin_bench.problem import parse_format
from marlin_bench.record import Ceiling, Environment, Origin, Published, Record, RunMeta, Status, record_id
from marlin_bench.run_writer import open_writer
from marlin_bench.store import META_FILE, RECORDS_FILE, published_folder

QUOTED_SUITE = "a10"
"""The suite whose cells the figures are: a gate of that suite judges them."""
FIGURES_FILE = "figures.yaml"

Positive = Annotated[float, Field(gt=0)]


class _Quoted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Layer(_Quoted):
    name: str
    K: int
    N: int


class _Series(_Quoted):
    """What a line of the figure stands for."""

    version: str
    format: str
    activation_dtype: str


class _Figure(_Quoted):
    """One figure: a value for each M of each series; `tflops` by the paper's own count."""

    source: str
    quantity: Literal["speedup", "tflops"]
    layer: _Layer
    M: tuple[int, ...]
    series: dict[str, tuple[Positive, ...]]
    times_ms: dict[str, tuple[Positive, ...]] = {}


class _Run(_Quoted):
    """Figures that share their clocks; `sm_clock` in Hz, `fp16_tensor` in flop/s at that clock."""

    run: str
    clocks: str
    locked: bool
    sm_clock: Positive
    fp16_tensor: Positive
    figures: tuple[_Figure, ...]


class _Models(_Quoted):
    source: str
    M: int
    backend: str
    gpus: dict[str, dict[str, Positive]]


class _File(_Quoted):
    schema_version: Literal[1]
    device: str
    published: str
    memory_bandwidth: Positive
    backends: dict[str, _Series]
    runs: tuple[_Run, ...]
    models: tuple[_Models, ...]


class PublishedModel(_Quoted):
    """The quoted speed-up of all linear layers of a model together."""

    device: str
    model: str
    backend: str
    M: int
    speedup: float
    source: str


def a10_paper_folder() -> Path:
    """Where the paper's figures lie."""
    return published_folder() / "a10_paper"


@cache
def _figures(path: Path) -> _File:
    from ruamel.yaml import YAML

    return _File.model_validate(YAML(typ="safe").load(path))


def published_models() -> list[PublishedModel]:
    """Figure 9: each model on each GPU."""
    found = _figures(a10_paper_folder() / FIGURES_FILE)
    return [
        PublishedModel(
            device=device, model=model, backend=group.backend, M=group.M, speedup=speedup, source=group.source
        )
        for group in found.models
        for device, values in group.gpus.items()
        for model, speedup in values.items()
    ]


def _paper_time(layer: _Layer, M: int, tflops: float) -> float:
    """Seconds behind a TFLOP/s of figure 11, which counts 2·M·N·K + 2·N·K operations."""
    return 2 * (M + 1) * layer.N * layer.K / (tflops * 1e12)


def _published(figure: _Figure, backend: str, index: int, clocks: str) -> Published:
    value, M = figure.series[backend][index], figure.M[index]
    times = figure.times_ms.get(backend)
    if figure.quantity == "tflops":
        return Published(time_s=_paper_time(figure.layer, M, value), source=figure.source, clocks=clocks)
    time_s = None if times is None else times[index] * 1e-3
    return Published(speedup=value, time_s=time_s, source=figure.source, clocks=clocks)


def _records(found: _File, run: _Run) -> Iterator[Record]:
    device = slug(found.device)
    for figure in run.figures:
        for backend in figure.series:
            series = found.backends[backend]
            for index, M in enumerate(figure.M):
                group_size = parse_format(series.format).group_size
                cell = cell_id(figure.layer.name, group_size, M)
                yield Record(
                    id=record_id(device, f"{QUOTED_SUITE}/{cell}", backend, "kernel"),
                    run=run.run,
                    cell=cell,
                    suite=QUOTED_SUITE,
                    layer=figure.layer.name,
                    device=device,
                    origin=Origin.PUBLISHED,
                    timer="kernel",
                    backend=backend,
                    backend_version=series.version,
                    M=M,
                    N=figure.layer.N,
                    K=figure.layer.K,
                    group_size=group_size,
                    format=series.format,
                    activation_dtype=series.activation_dtype,
                    status=Status.OK,
                    clocks_locked=run.locked,
                    published=_published(figure, backend, index, run.clocks),
                )


def _meta(found: _File, run: _Run, cells: int) -> RunMeta:
    quote = f"the MARLIN paper's figure for the A10, {run.clocks}"
    text = f"# quoted, not measured: {', '.join(dict.fromkeys(figure.source for figure in run.figures))}\n"
    return RunMeta(
        run=run.run,
        suite=QUOTED_SUITE,
        suite_text=text,
        suite_digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        origin=Origin.PUBLISHED,
        started=found.published,
        clock_policy="lock" if run.locked else "observe",
        environment=Environment(
            device_name=found.device,
            device_kind="cuda",
            capability="8.6",
            sm_count=72,
            ecc=False,
            memory_bandwidth=found.memory_bandwidth,
            cpu="not published",
            cpu_threads=1,
            python="not published",
            commit="unknown",
            dirty=None,
            code_digest="published",
        ),
        ceilings=[
            Ceiling(name="hbm_read", value=found.memory_bandwidth, detail=quote),
            Ceiling(name="fp16_tensor", value=run.fp16_tensor, sm_clock_hz=run.sm_clock, detail=quote),
        ],
        cells=cells,
    )


def write_published(source: Path, target: Path) -> list[Path]:
    """Write the run folders of `source` (a figures.yaml) under `target`; gives them."""
    found, folders = _figures(source), []
    for run in found.runs:
        folder = target / run.run
        for stale in (META_FILE, RECORDS_FILE):
            (folder / stale).unlink(missing_ok=True)
        records = list(_records(found, run))
        with open_writer(folder) as writer:
            writer.write_meta(_meta(found, run, len({record.cell for record in records})))
            for record in records:
                writer.append(record)
        folders.append(folder)
    return folders


if __name__ == "__main__":
    write_published(a10_paper_folder() / FIGURES_FILE, a10_paper_folder())
