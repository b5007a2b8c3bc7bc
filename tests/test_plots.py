"""What stands in the figures: panels from rows, and the drawings themselves."""

import math
import xml.etree.ElementTree as ElementTree
from itertools import combinations

import pytest
from synthetic_run import H200_CEILINGS, h200_records, make_record, published_record

from marlin_bench.panels import roofline_panels, speedup_panels
from marlin_bench.plots import roofline, speedup
from marlin_bench.plots.canvas import MOST_PANELS, PlotError, save
from marlin_bench.plots.theme import looks
from marlin_bench.record import Ceiling, Flag, Status
from marlin_bench.roofline import Roofs, roofs_from_ceilings
from marlin_bench.speedup import rows

ROOFS = roofs_from_ceilings(H200_CEILINGS)


@pytest.fixture(scope="module")
def made():
    return rows(h200_records(), ROOFS)


def texts(figure):
    import matplotlib.text

    return " | ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_a_panel_a_layer_and_a_series_a_backend(made):
    panels = roofline_panels(made, ROOFS)
    assert [panel.title for panel in panels] == [
        "72k_x_18k  (K=73728 N=18432)",
        "square_8k  (K=8192 N=8192)",
        "mlp_up  (K=8192 N=28672)",
    ]
    assert [series.backend for series in panels[0].series] == ["cublas_fp16", "marlin", "marlin_sparse"]
    assert [point.M for point in panels[0].series[0].points] == [1, 16, 32, 64, 128, 256, 512, 1024]


def test_points_stand_where_flop_bytes_and_time_put_them(made):
    first = roofline_panels(made, ROOFS)[1].series[1].points[0]
    row = next(
        row for row in made if (row.record.layer, row.record.backend, row.record.M) == ("square_8k", "marlin", 1)
    )
    assert (first.x, first.y) == (row.arithmetic_intensity, row.achieved_flops)
    assert first.low < first.y < first.high


def test_the_tensor_roof_stands_at_the_clock_the_fastest_product_held(made):
    dense = roofline_panels(made, ROOFS)[2].compute[0]
    assert dense.sm_clock_hz == 1400e6  # mlp_up is fastest at M=1024
    assert dense.rate == pytest.approx(760e12 * 1400 / 1410)
    assert dense.lowest == dense.rate
    assert dense.highest == pytest.approx(760e12 * 1980 / 1410)


def test_the_knee_is_where_memory_slope_and_dense_roof_meet(made):
    panel = roofline_panels(made, ROOFS)[0]
    assert panel.knee == pytest.approx(760e12 / 4.31e12)


def test_a_sparse_backend_brings_its_own_roof(made):
    assert [roof.name for roof in roofline_panels(made, ROOFS)[0].compute] == ["fp16", "fp16 2:4"]
    assert [roof.name for roof in roofline_panels(made, ROOFS)[2].compute] == ["fp16"]


def test_each_product_is_joined_with_its_fp16_twin(made):
    panel = roofline_panels(made, ROOFS)[1]
    assert len(panel.twins) == 16
    backend, baseline, own = panel.twins[0]
    assert backend == "marlin"
    assert baseline == (panel.series[0].points[0].x, panel.series[0].points[0].y)
    assert own == (panel.series[1].points[0].x, panel.series[1].points[0].y)


def test_without_ceilings_there_are_points_and_no_roofs(made):
    panel = roofline_panels(made, None)[0]
    assert (panel.memory, panel.compute, panel.knee) == (None, (), None)
    assert roofline.draw([panel], "no roofs") is not None


def test_group_sizes_have_panels_of_their_own():
    both = [make_record("marlin", 1, 1e-5), make_record("marlin", 1, 1e-5, group_size=None)]
    titles = [panel.title for panel in roofline_panels(rows(both, ROOFS), ROOFS)]
    assert titles == ["square_8k  (K=8192 N=8192 g=128)", "square_8k  (K=8192 N=8192 one scale a column)"]


def test_speedup_panels_leave_the_baseline_out_and_carry_ideal_and_crossover(made):
    panel = speedup_panels(made)[0]
    assert [series.backend for series in panel.series] == ["marlin", "marlin_sparse"]
    assert panel.baseline == "cublas_fp16"
    assert {ideal.format: round(ideal.points[0][1], 2) for ideal in panel.ideals} == {
        "int4_g128": 3.88,
        "int4_2of4_g128": 5.12,
    }
    assert dict(panel.crossovers)["marlin"] == pytest.approx(101, abs=2)


def test_both_ideal_lines_are_drawn_and_say_where_they_begin(made):
    chosen = [row for row in made if row.record.layer == "72k_x_18k"]
    said = texts(speedup.draw(speedup_panels(chosen), "H200"))
    for expected in ("ideal int4_g128", "3.88x", "ideal int4_2of4_g128", "5.12x"):
        assert expected in said


def test_a_measured_sparse_roof_is_drawn_instead_of_twice_the_dense_one():
    measured = Ceiling(name="sparse_tensor", value=1200e12, sm_clock_hz=1980e6, detail="wgmma.sp")
    roofs = roofs_from_ceilings([*H200_CEILINGS, measured])
    panel = roofline_panels(rows(h200_records(layers=("72k_x_18k",)), roofs), roofs)[0]
    dense, sparse = panel.compute
    assert (dense.name, sparse.name) == ("fp16", "fp16 2:4")
    assert sparse.rate == pytest.approx(1200e12 * sparse.sm_clock_hz / 1980e6)
    assert "fp16 2:4" in texts(roofline.draw([panel], "H200"))


def test_a_point_above_the_roof_is_ringed_and_explained():
    floor = 8192 * 8192 * 4.125 / 8 / 4.31e12
    above = rows([make_record("cublas_fp16", 1, 4e-5), make_record("marlin", 1, 0.8 * floor)], ROOFS)
    figure = roofline.draw(roofline_panels(above, ROOFS), "above")
    assert "above a measured roof or the ideal" in texts(figure)
    below = rows([make_record("cublas_fp16", 1, 4e-5), make_record("marlin", 1, 2 * floor)], ROOFS)
    assert "above a measured roof" not in texts(roofline.draw(roofline_panels(below, ROOFS), "below"))


def test_published_values_say_so_in_the_figure():
    quoted = [published_record(speedup=s, M=M) for s, M in ((3.88, 1), (3.87, 16), (3.2, 64))]
    found = rows(quoted, Roofs(memory=600e9, compute={"fp16": 125e12}))
    assert "marlin (published)" in texts(speedup.draw(speedup_panels(found), "A10"))


def test_a_roofline_names_its_roofs_knee_and_batches(made):
    chosen = [row for row in made if row.record.layer == "72k_x_18k"]
    said = texts(roofline.draw(roofline_panels(chosen, ROOFS), "H200"))
    for expected in (
        "HBM 4.31 TB/s",
        "L2 9.50 TB/s",
        "fp16 760 TFLOP/s at 1410 MHz",
        "knee 176",
        "M=1",
        "1024",
        "marlin_sparse",
    ):
        assert expected in said


def test_a_cpu_s_slope_is_its_ram():
    roofs = roofs_from_ceilings([Ceiling(name="ram_triad", value=2e10), Ceiling(name="dense_bf16", value=1e12)])
    cpu = rows([make_record("dense_bf16", 1, 1e-2), make_record("tinygemm_cpu", 1, 3e-3)], roofs)
    said = texts(roofline.draw(roofline_panels(cpu, roofs), "CPU"))
    assert "RAM 20.0 GB/s" in said
    assert "HBM" not in said


def test_a_speedup_figure_names_ideal_baseline_and_crossover(made):
    said = texts(speedup.draw(speedup_panels(made), "H200"))
    for expected in ("ideal int4_g128", "cublas_fp16", "1x at M=", "batch size M"):
        assert expected in said


def test_crossovers_are_named_above_the_highest_line_of_a_speedup_figure(made):
    figure = speedup.draw(speedup_panels(made), "H200")
    figure.draw_without_rendering()
    for ax in figure.axes:
        highest = ax.transData.transform((1, max(max(line.get_ydata()) for line in ax.lines)))[1]
        named = [text for text in ax.texts if "1x at M=" in text.get_text()]
        assert all(text.get_window_extent().y0 > highest for text in named)
    assert "1x at M=" in texts(figure)


def test_the_slope_labels_lie_along_their_slopes(made):
    figure = roofline.draw(roofline_panels(made[:24], ROOFS), "H200")
    figure.draw_without_rendering()
    ax = figure.axes[0]
    label = next(text for text in ax.texts if text.get_text().startswith("HBM"))
    (x0, y0), (x1, y1) = ax.transData.transform([(1, 4.31), (10, 43.1)])
    assert label.get_rotation() == pytest.approx(math.degrees(math.atan2(y1 - y0, x1 - x0)), abs=1)


def test_no_two_backends_share_both_colour_and_marker():
    names = ["cublas_fp16", "cublas_bf16", "marlin", "marlin_hopper", "marlin_sparse", "tinygemm", "naive_w4a16",
             "dequantize_cublas", "humming", "quack", "gemlite", "torchao"]  # fmt: skip
    chosen = looks(names)
    for left, right in combinations(chosen.values(), 2):
        assert left.marker != right.marker
        assert left.colour != right.colour


def test_a_strange_backend_keeps_its_look_whatever_else_is_drawn_before_it():
    assert looks(["quack", "humming"])["humming"] == looks(["humming", "marlin", "quack"])["humming"]


@pytest.mark.parametrize("draw", [roofline.draw, speedup.draw])
def test_nothing_to_draw_and_too_much_to_draw_are_sentences(draw, made):
    with pytest.raises(PlotError, match="nothing to draw"):
        draw([], "empty")
    panels = roofline_panels(made, ROOFS) if draw is roofline.draw else speedup_panels(made)
    with pytest.raises(PlotError, match="--layer"):
        draw(panels[:1] * (MOST_PANELS + 1), "many")


def test_files_are_svg_and_png_and_the_same_records_give_the_same_svg(made, tmp_path):
    panels = roofline_panels([row for row in made if row.record.layer == "square_8k"], ROOFS)
    paths = [tmp_path / "one.svg", tmp_path / "one.png", tmp_path / "two.svg"]
    save(roofline.draw(panels, "H200"), paths[:2])
    save(roofline.draw(panels, "H200"), paths[2:])
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(paths[0]).getroot().tag.endswith("svg")
    assert paths[0].read_bytes() == paths[2].read_bytes()
    with pytest.raises(PlotError, match="cannot write"):
        save(roofline.draw(panels, "H200"), [tmp_path / "no" / "folder.svg"])


def test_the_knee_is_marked_with_its_M_and_the_crossover_on_its_curve(made):
    panel = roofline_panels(made, ROOFS)[1]
    assert dict(panel.knees)["int4_g128"] == pytest.approx(47, abs=1)  # at the 1400 MHz of the fastest product
    mark = next(mark for mark in panel.crossovers if mark.backend == "marlin")
    left, right = panel.series[1].points[3], panel.series[1].points[4]
    assert (left.M, right.M) == (64, 128)
    assert left.M < mark.M < right.M
    assert left.x < mark.x < right.x
    said = texts(roofline.draw([panel], "H200"))
    assert f"1x at M={mark.M:.0f}" in said
    assert "M=47 int4" in said


def test_the_launch_floor_is_drawn_where_the_page_shows_it(made):
    panel = roofline_panels(made, ROOFS)[1]
    assert panel.launch.points[0][1] == pytest.approx(2 * 8192 * 8192 / 1.4e-6)
    assert "launch 1.40 µs" in texts(roofline.draw([panel], "H200"))
    far_above = rows([make_record("marlin", 1, 1e-3, layer="72k_x_18k", N=18432, K=73728)], ROOFS)
    assert "launch" not in texts(roofline.draw(roofline_panels(far_above, ROOFS), "slow"))


def test_an_impossible_record_is_a_cross_on_the_roof_and_no_point():
    refused = make_record("naive_w4a16", 16, 0, status=Status.IMPOSSIBLE, reason="less than the bytes take")
    found = rows([make_record("marlin", 16, 2e-5), refused], ROOFS)
    panel = roofline_panels(found, ROOFS)[0]
    assert [series.backend for series in panel.series] == ["marlin"]
    (mark,) = panel.impossible
    assert mark.y == pytest.approx(mark.x * ROOFS.memory)
    assert "impossible" in texts(roofline.draw([panel], "H200"))
    assert roofline_panels(rows([refused], ROOFS), ROOFS) == []


def test_a_sample_that_did_not_settle_is_pale_and_said_to_be():
    settled = rows([make_record("marlin", 1, 2e-5)], ROOFS)
    moved = rows([make_record("marlin", 1, 2e-5, flags=[Flag.THROTTLED])], ROOFS)
    assert "pale" not in texts(roofline.draw(roofline_panels(settled, ROOFS), "settled"))
    assert "pale" in texts(roofline.draw(roofline_panels(moved, ROOFS), "throttled"))


def test_the_legend_stays_on_the_page(made):
    everything = [make_record("naive_w4a16", 16, 0, status=Status.IMPOSSIBLE, reason="no"), *h200_records()]
    figure = roofline.draw(roofline_panels(rows(everything, ROOFS), ROOFS), "H200")
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_a_profiled_product_is_marked_over_the_bytes_that_were_counted(made):
    row = next(row for row in made if (row.record.layer, row.record.backend, row.record.M) == ("mlp_up", "marlin", 16))
    chosen = [other for other in made if other.record.layer == "mlp_up"]
    (panel,) = roofline_panels(chosen, ROOFS, {row.record.id: 40.0})
    (mark,) = panel.profiled
    assert (mark.backend, mark.M, mark.x, mark.y) == ("marlin", 16, 40.0, row.achieved_flops)
    assert "over the bytes a profiler counted" in texts(roofline.draw([panel], "H200"))
    assert "profiler" not in texts(roofline.draw(roofline_panels(chosen, ROOFS), "H200"))


def test_many_strangers_are_told_apart():
    from marlin_bench.plots.theme import looks

    chosen = looks([f"peer_{index}" for index in range(25)])
    assert len(set(chosen.values())) == 25


@pytest.mark.parametrize("draw", [roofline.draw, speedup.draw])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_panels_titles_labels_and_legend_keep_clear_of_each_other(draw, count, made):
    panels = roofline_panels(made, ROOFS) if draw is roofline.draw else speedup_panels(made)
    figure = draw([panels[index % len(panels)] for index in range(count)], "a title over all of it")
    renderer = figure.canvas.get_renderer()
    width, height = figure.bbox.size
    boxes = [ax.get_window_extent(renderer) for ax in figure.axes if ax.axison]
    titles = [ax._left_title.get_window_extent(renderer) for ax in figure.axes if ax.axison]
    labels = [axis.get_tightbbox(renderer) for ax in figure.axes if ax.axison for axis in (ax.xaxis, ax.yaxis)]
    (legend,) = (one.get_window_extent(renderer) for one in figure.legends)
    over = figure._suptitle.get_window_extent(renderer)
    for one, other in combinations([*boxes, *titles, legend, over], 2):
        assert not one.overlaps(other)
    for label in filter(None, labels):
        assert 0 <= label.x0 < label.x1 <= width
        assert not label.overlaps(legend)
    assert all(0 <= box.y0 < box.y1 <= height for box in (*boxes, *titles, legend, over))
    assert max(box.height for box in boxes) > 0.12 * height  # what is left over is for the panels
