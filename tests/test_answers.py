"""What a stored run answers: the paper's figures, knees, dispatch tables, other GPUs."""

import dataclasses
import json

import pytest
from synthetic_run import RunSpec, h200_records, h200_run, make_record
from test_cli import run_cli  # noqa: F401  (a fixture)

from marlin_bench.datasheet import find_datasheet
from marlin_bench.models import builtin_model
from marlin_bench.paper import ideal_layer, paper_models, paper_roofline, paper_speedup
from marlin_bench.plots import knee as knee_plot
from marlin_bench.plots import paper as paper_plots
from marlin_bench.plots import predict as predict_plot
from marlin_bench.plots.canvas import PlotError, save
from marlin_bench.predict import Prediction, UnknownGpuError, find_gpu, predict
from marlin_bench.roofline import roofs_from_ceilings
from marlin_bench.run_writer import open_writer
from marlin_bench.speedup import rows
from marlin_bench.store import published_folder

GPU_YAML = """key: mine
names: []
memory_bandwidth: 1.0e+12
fp16_tensor: 1.0e+14
clock_hz: 1.0e+9
sm_count: 100
flop_per_sm_clock: 1000
"""


@pytest.fixture(scope="module")
def made():
    from synthetic_run import H200_CEILINGS

    return rows(h200_records(), roofs_from_ceilings(H200_CEILINGS))


def texts(figure):
    import matplotlib.text

    return " | ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize(("figure", "M16"), [(1, 3.90), (10, 3.93), (12, 3.90)])
def test_a_paper_figure_has_the_paper_s_values_behind_and_the_run_s_in_front(made, figure, M16):
    found = paper_speedup(figure, made, 132)
    quoted = next(series for series in found.quoted.series if series.backend == "marlin")
    assert next(point.y for point in quoted.points if point.M == 16) == M16
    assert {series.published for series in found.quoted.series} == {True}
    assert found.measured.title.startswith("72k_x_18k")
    sparse = {"marlin_sparse"} if figure == 12 else set()
    assert {series.backend for series in found.measured.series} == {"marlin"} | sparse
    said = texts(paper_plots.draw_speedup(found, "figure", "NVIDIA H200"))
    assert "marlin (A10, published)" in said
    assert "marlin (NVIDIA H200)" in said
    assert "ideal int4 (NVIDIA H200)" in said


def test_the_published_ideal_is_that_of_the_paper(made):
    boost, locked = paper_speedup(1, made, 132), paper_speedup(10, made, 132)
    assert dict(boost.quoted.ideals[0].points)[64] == pytest.approx(3.27, abs=0.01)
    assert dict(locked.quoted.ideals[0].points)[64] == pytest.approx(1.71, abs=0.01)


def test_a_run_without_the_paper_s_layer_leaves_the_figure_published_only(made):
    other = [row for row in made if row.record.layer == "square_8k"]
    assert paper_speedup(1, other, 132).measured is None
    assert "H200" not in texts(paper_plots.draw_speedup(paper_speedup(1, other, 132), "figure", "H200"))
    assert ideal_layer(72) == (73728, 18432)


def test_figure_11_puts_the_run_s_square_layers_over_the_paper_s(made):
    found = paper_roofline(made, made[0].roofs)
    assert [pair.measured is not None for pair in found] == [False, True, False, False]
    assert found[1].measured.title == "square_8k  (K=8192 N=8192)"
    assert "roofs (A10, published)" in texts(paper_plots.draw_roofline(found, "figure 11", "NVIDIA H200"))


def test_figure_9_sums_the_layers_of_the_paper_s_models():
    layers = builtin_model("paper-llama-7b").layers
    records = [
        make_record(b, 16, layer.K * layer.N * cost / 3e12, layer=f"{layer.K}x{layer.N}", K=layer.K, N=layer.N, noise=0)
        for layer in layers
        for b, cost in (("cublas_fp16", 2.0), ("marlin", 0.5))
    ]
    bars = paper_models(rows(records, None), "NVIDIA H200")
    assert next(b.speedup for b in bars if (b.device, b.model) == ("NVIDIA A10", "paper-llama-7b")) == 3.69
    own = [bar for bar in bars if not bar.published]
    assert [(bar.model, bar.backend, round(bar.speedup, 6)) for bar in own] == [("paper-llama-7b", "marlin", 4.0)]
    assert "marlin on NVIDIA A10 (published)" in texts(paper_plots.draw_models(bars, "figure 9"))


def test_a_model_like_the_paper_s_stands_for_it_and_says_so():
    shapes = ((4096, 12288), (4096, 4096), (4096, 22016), (11008, 4096))  # llama-2-7b
    records = [
        make_record(backend, 16, K * N * cost * 1e-15, layer=f"{K}x{N}", K=K, N=N, noise=0.0)
        for K, N in shapes
        for backend, cost in (("cublas_fp16", 2.0), ("marlin", 1.0))
    ]
    bars = paper_models(rows(records, None), "NVIDIA H200")
    assert [(b.model, b.measured_on, round(b.speedup, 6)) for b in bars if not b.published] == [
        ("paper-llama-7b", "llama-2-7b", 2.0)
    ]
    assert "llama-7b\n(run: llama-2-7b)" in texts(paper_plots.draw_models(bars, "figure 9"))


def test_a_kernel_is_not_predicted_where_it_cannot_run(run_cli, tmp_path):  # noqa: F811
    records = [
        make_record(backend, 16, time, noise=0.0)
        for backend, time in (("cublas_fp16", 3e-5), ("marlin", 1e-5), ("marlin_hopper", 1e-5), ("of_another", 1e-5))
    ]
    RunSpec(records).write(tmp_path / "results")
    code, out, err = run_cli("predict", "--gpu", "a10")
    assert code == 0
    assert "marlin_hopper" not in out
    assert "left out, as a10 cannot run them: marlin_hopper" in err
    assert "of_another" in out  # nobody knows what it needs
    assert "marlin_hopper" in run_cli("predict", "--gpu", "h100")[1]


def test_a_prediction_is_the_ideal_elsewhere_times_the_efficiency_here(made):
    found = predict(made, find_datasheet("a10"))
    one = next(p for p in found if (p.layer, p.M, p.backend) == ("72k_x_18k", 16, "marlin"))
    here = next(r for r in made if (r.record.layer, r.record.M, r.record.backend) == ("72k_x_18k", 16, "marlin"))
    assert one.ideal == pytest.approx(3.87, abs=0.005)
    assert one.expected == pytest.approx(one.ideal * here.fraction_of_ideal)
    assert {p.backend for p in found} == {"marlin", "marlin_sparse"}  # a baseline has no ideal to reach


def test_a_prediction_can_never_be_stored(made, tmp_path):
    one = predict(made, find_datasheet("a10"))[0]
    assert dataclasses.is_dataclass(one)
    with open_writer(tmp_path / "run") as writer, pytest.raises(AttributeError):
        writer.append(one)
    assert isinstance(one, Prediction)


def test_every_predicted_curve_says_so(made):
    figure = predict_plot.draw(predict(made, find_datasheet("l4")), "PREDICTED for l4")
    assert "marlin (predicted)" in texts(figure)
    assert "predicted speed-up" in texts(figure)


@pytest.mark.parametrize("name", ["a10", "l4", "l40s", "a100", "h100", "h200", "rtx4090", "b200"])
def test_the_gpus_of_the_command_line_are_known(name):
    assert find_gpu(name).key.startswith(name)


def test_a_gpu_of_one_s_own_is_a_file_and_a_mistake_is_a_sentence(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(GPU_YAML)
    assert find_gpu(str(path)).roofs().memory == 1e12
    for bad in ("key: mine\n", "[", "- 1\n"):
        path.write_text(bad)
        with pytest.raises(UnknownGpuError, match="memory_bandwidth"):
            find_gpu(str(path))
    for name in ("geforce256", str(tmp_path / "none.yaml")):
        with pytest.raises(UnknownGpuError):
            find_gpu(name)


def test_knees_are_drawn_with_arrows_beyond_what_was_measured(made, tmp_path):
    from marlin_bench.knee import knees
    from marlin_bench.speedup import curves

    figure = knee_plot.draw(knees(curves(made)), "knees")
    assert "crossover: the 16-bit baseline wins" in texts(figure)
    assert "72k_x_18k  marlin" in texts(figure)
    assert "beyond the measured M (knee above, crossover below)" in texts(figure)
    save(figure, [tmp_path / "knee.png"])
    assert figure.axes[0].get_tightbbox().x0 >= 0  # no label is cut off
    with pytest.raises(PlotError):
        knee_plot.draw([], "none")


@pytest.fixture
def model_run(tmp_path):
    layers = builtin_model("llama-3-8b").layers
    RunSpec(
        [
            make_record(
                b, M, layer.K * layer.N * cost / 3e12, layer=f"{layer.K}x{layer.N}", K=layer.K, N=layer.N, noise=0
            )
            for layer in layers
            for b, cost in (("cublas_fp16", 2.0), ("marlin", 0.5))
            for M in (1, 16)
        ]
    ).write(tmp_path / "results")


def test_recommend_prints_choices_and_exports_the_dispatch_table(run_cli, model_run):  # noqa: F811
    code, out, _ = run_cli("recommend", "--model", "llama-3-8b", "--traffic", "1:3,4:1")
    assert code == 0
    assert "regret of marlin" in out
    assert "4.00x" in out.splitlines()[-2]
    code, out, _ = run_cli("recommend", "--model", "llama-3-8b", "--json", "-M", "16")
    table = json.loads(out)
    assert (code, table["model"], len(table["layers"])) == (0, "llama-3-8b", 4)


def test_recommend_takes_a_config_json(run_cli, model_run, tmp_path):  # noqa: F811
    config = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
              "intermediate_size": 14336, "num_hidden_layers": 2}  # fmt: skip
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    code, out, _ = run_cli("recommend", "--model", tmp_path / "mine" / "config.json", "--json")
    assert (code, json.loads(out)["model"]) == (0, "mine")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["recommend", "--model", "llama-9"], 2, "llama-9"),
        (["recommend", "--model", "llama-2-7b"], 5, "llama-2-7b"),
        (["recommend", "--backend", "marlim"], 2, "marlim"),
        (["recommend", "--traffic", "often"], 2, "often"),
        (["recommend", "--traffic", "4096:1"], 5, "4096"),
        (["predict", "--gpu", "geforce256"], 2, "geforce256"),
        (["plot", "paper", "--figure", "7"], 2, "7"),
        (["report", "--readme", "none.md"], 2, "none.md"),
    ],
)
def test_bad_questions_are_one_sentence(run_cli, model_run, arguments, code, said):  # noqa: F811
    ended, out, err = run_cli(*arguments)
    assert ended == code, err
    assert said in err
    assert "Traceback" not in err
    assert out == "" or arguments[1] == "--traffic"


def test_every_answer_works_on_a_run_from_the_command_line(run_cli, tmp_path):  # noqa: F811
    h200_run(tmp_path / "results", layers=("72k_x_18k",))
    assert "knee M" in run_cli("knees")[1]
    assert "predicted" in run_cli("predict", "--gpu", "a100")[1].splitlines()[1]
    assert json.loads(run_cli("predict", "--gpu", "b200", "--json")[1])[0]["predicted"] is True
    assert run_cli("plot", "knee", "-o", "k.svg")[0] == 0
    assert run_cli("report", "-o", "r.html", "--layer", "72k_x_18k")[1] == "r.html\n"
    assert run_cli("report", "--md")[1].startswith("# NVIDIA H200")


def test_without_a_model_the_first_of_the_suite_that_was_timed_is_taken(run_cli):  # noqa: F811
    code, _, err = run_cli("recommend", published_folder() / "h200" / "20261121T111537Z_h200_ab3bb3f56432")
    assert code == 0
    assert "model llama-2-7b" in err
