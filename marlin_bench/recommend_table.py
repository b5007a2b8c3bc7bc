"""A recommendation as two tables: the choice for each layer and M, and every backend used alone."""

from __future__ import annotations

from collections.abc import Mapping

from marlin_bench.model_times import LayerTimes, TrafficGain, model_time
from marlin_bench.models import Model
from marlin_bench.recommend import Recommendation
from marlin_bench.table import Column, Line, Table
from marlin_bench.units import NOTHING, format_percent, format_ratio, format_time


def choice_table(found: Recommendation) -> Table:
    """One line a layer and M; the regret is that of the single backend named in its heading."""
    alone = "a single one" if found.single is None else found.single.backend
    columns = (
        Column("layer"),
        Column("K", right=True, rank=2),
        Column("N", right=True, rank=2),
        Column("M", right=True),
        Column("best"),
        Column("time", right=True),
        Column("speed-up", right=True),
        Column(f"regret of {alone}", right=True, rank=1),
    )
    lines = [
        Line(
            (
                choice.layer,
                str(choice.K),
                str(choice.N),
                str(choice.M),
                choice.backend,
                format_time(choice.time_s),
                format_ratio(choice.speedup),
                format_percent(choice.regret, 1),
            )
        )
        for choice in found.choices
    ]
    return Table(columns, lines)


def single_table(found: Recommendation, model: Model, times: LayerTimes, gains: Mapping[str, TrafficGain]) -> Table:
    """One line a backend that covers the model: its speed-up at each M, its regret, its gain under the traffic."""
    columns = [
        Column("everywhere"),
        Column("mean regret", right=True),
        Column("worst", right=True),
        Column("at M", right=True),
        *(Column(f"M={M}", right=True, rank=1) for M in found.batches),
    ]
    if gains:
        columns.append(Column("under traffic", right=True))
    lines = []
    for single in found.singles:
        answers = [model_time(model, times, single.backend, M) for M in found.batches]
        cells = [
            single.backend,
            format_percent(single.regret, 1),
            format_percent(single.worst_regret, 1),
            str(single.worst_M),
            *(NOTHING if answer is None else format_ratio(answer.speedup) for answer in answers),
        ]
        if gains:
            cells.append(format_ratio(gains[single.backend].speedup))
        lines.append(Line(tuple(cells)))
    return Table(columns, lines)
