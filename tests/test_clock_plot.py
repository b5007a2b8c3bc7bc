"""The clocks of a run over time: what every block carried, cells marked, nothing invented."""

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import h200_run

from marlin_bench.clock_timeline import timeline
from marlin_bench.plots.canvas import PlotError, save
from marlin_bench.plots.clocks import draw
from marlin_bench.record import Telemetry


def measured(results: Path, telemetry=None, clock_hz=1500e6):
    """Two cells of two backends, a block a second, cell after cell."""
    run = h200_run(results, layers=("square_8k",), backends=("cublas_fp16", "marlin"))
    cells = list(dict.fromkeys(record.cell for record in run.records))[:2]
    records = []
    for record in run.records:
        if record.cell not in cells:
            continue
        first = 100.0 * cells.index(record.cell) + (0.5 if record.backend == "marlin" else 0.0)
        blocks = [
            replace(
                block,
                started_s=first + index,
                sm_clock_hz=clock_hz,
                telemetry=telemetry(index) if telemetry else None,
            )
            for index, block in enumerate(record.blocks[:10])
        ]
        records.append(record.model_copy(update={"blocks": blocks}))
    return replace(run, records=records), cells


def test_blocks_of_all_backends_stand_in_order_of_time_and_cells_span_theirs(tmp_path):
    run, cells = measured(tmp_path)
    found = timeline(run.records)
    moments = [moment for moment, _ in found.probe]
    assert moments == sorted(moments)
    assert len(moments) == 40
    assert {hertz for _, hertz in found.probe} == {1500e6}
    assert [(span.cell, span.start_s, span.end_s) for span in found.cells] == [
        (cells[0], 0.0, 9.5),
        (cells[1], 100.0, 109.5),
    ]


def test_what_no_block_carries_is_an_empty_line(tmp_path):
    found = timeline(measured(tmp_path)[0].records)
    assert (found.nvml, found.power, found.temperature, found.events) == ([], [], [], [])


def test_blocks_too_short_for_a_power_leave_that_of_their_cell(tmp_path):
    run, cells = measured(tmp_path)
    records = [
        record.model_copy(update={"cell_power_w": 650.0}) if record.cell == cells[1] else record
        for record in run.records
    ]
    assert [span.power_w for span in timeline(records).cells] == [None, 650.0]
    figure = draw(replace(run, records=records))
    assert [ax.get_ylabel() for ax in figure.axes] == ["SM clock (MHz)", "power (W)"]
    (line,) = figure.axes[1].collections
    assert [tuple(point) for point in line.get_segments()[0]] == [(100.0, 650.0), (109.5, 650.0)]


def test_reasons_and_counters_become_events_those_that_slow_first(tmp_path):
    def telemetry(index):
        return Telemetry(
            power_w=600.0 if index > 5 else None,
            event_reasons=["sw_power_cap"] if index > 5 else [],
            throttle_s={"sw_thermal": 0.001} if index == 9 else {},
        )

    found = timeline(measured(tmp_path, telemetry)[0].records)
    assert [(event.reason, event.slowed, len(event.times)) for event in found.events] == [
        ("sw_thermal", True, 4),
        ("sw_power_cap", False, 16),
    ]
    assert len(found.power) == 16


def test_the_figure_has_a_panel_for_each_thing_that_was_recorded(tmp_path):
    assert len(draw(measured(tmp_path)[0]).axes) == 1

    def telemetry(index):
        return Telemetry(sm_clock_hz=1.6e9, power_w=600.0, temperature_c=60.0, event_reasons=["sw_power_cap"])

    run, cells = measured(tmp_path / "more", telemetry)
    figure = draw(run)
    assert [ax.get_ylabel() for ax in figure.axes] == ["SM clock (MHz)", "power (W)", "temperature (°C)", ""]
    assert [text.get_text() for text in figure.axes[0].texts] == cells
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == ["sw_power_cap"]
    save(figure, [tmp_path / "clocks.svg"])
    assert (tmp_path / "clocks.svg").stat().st_size > 1000


def test_a_run_without_clocks_is_a_complaint_not_an_empty_picture(tmp_path):
    run, _ = measured(tmp_path, clock_hz=None)
    with pytest.raises(PlotError, match="no clocks to draw"):
        draw(run)
