import dataclasses
import json

import pytest

from marlin_bench.plan import Cell, SelectionError, cell_id, floor_seconds, launch_floors, plan
from marlin_bench.problem import FP16, int4
from marlin_bench.suite import Sampling, load_suite, parse_suite

TEXT = """
device: {kind: cuda}
backends: [cublas_fp16, tinygemm, marlin]
group_sizes: [128, column]
M: [1, 16]
seed: 7
layers:
  - {name: 72k_x_18k, K: 73728, N: 18432}
  - {K: 4096, N: 4096}
  - model: llama-2-7b
"""


@pytest.fixture
def suite():
    return parse_suite(TEXT, source="mine.yaml", name="mine")


def ids(cells):
    return [cell.id for cell in cells]


def stored_as(backend, problem):
    return FP16 if backend.startswith("cublas") else int4(problem.group_size)


def test_cells_of_a_layer_and_group_follow_each_other_with_M_ascending(suite):
    assert ids(plan(suite))[:6] == [
        "72k_x_18k/g128/M1",
        "72k_x_18k/g128/M16",
        "72k_x_18k/gK/M1",
        "72k_x_18k/gK/M16",
        "4096x4096/g128/M1",
        "4096x4096/g128/M16",
    ]


def test_a_backend_with_a_limit_is_left_out_of_larger_batches():
    text = TEXT.replace("tinygemm, marlin", "{name: tinygemm, up_to_M: 8}, marlin")
    suite = parse_suite(text, source="mine.yaml", name="mine")
    assert suite.backends == ("cublas_fp16", "tinygemm", "marlin")
    backends = {cell.M: cell.backends for cell in plan(suite)}
    assert backends == {1: ("cublas_fp16", "tinygemm", "marlin"), 16: ("cublas_fp16", "marlin")}
    assert {cell.M for cell in plan(suite, backends=["tinygemm"])} == {1}
    with pytest.raises(SelectionError, match="leaves nothing"):
        plan(suite, backends=["tinygemm"], batches=[16])


def test_every_cell_of_every_shipped_suite_has_an_id_of_its_own():
    for name in ("h200", "a10", "cpu", "smoke"):
        shipped = load_suite(name)
        cells = plan(shipped)
        assert len(set(ids(cells))) == len(cells) == len(shipped.layers) * len(shipped.M) * len(shipped.group_sizes)


def test_a_cell_is_plain_data_that_survives_json(suite):
    cell = plan(suite)[3]
    fields = json.loads(json.dumps(dataclasses.asdict(cell)))
    again = Cell(**{**fields, "backends": tuple(fields["backends"]), "timers": tuple(fields["timers"])})
    assert again == cell
    assert (cell.suite, cell.seed, cell.timers, cell.group_size) == ("mine", 7, ("kernel",), None)
    assert (cell.problem.M, cell.problem.N, cell.problem.K) == (16, 18432, 73728)


def test_ids_name_layer_group_and_batch():
    assert cell_id("llama-2-7b.qkv", 64, 4096) == "llama-2-7b.qkv/g64/M4096"
    assert cell_id("a", None, 1) == "a/gK/M1"


def test_only_selects_by_globs_on_ids_and_keeps_the_order(suite):
    assert ids(plan(suite, only=["72k_x_18k/*/M16"])) == ["72k_x_18k/g128/M16", "72k_x_18k/gK/M16"]
    both = ids(plan(suite, only=["4096x4096/g128/*", "72k_x_18k/g128/M1"]))
    assert both == ["72k_x_18k/g128/M1", "4096x4096/g128/M1", "4096x4096/g128/M16"]


def test_a_glob_for_M1_does_not_select_M16(suite):
    assert all(cell.M == 1 for cell in plan(suite, only=["*/M1"]))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["72k_x_18k"], {"72k_x_18k"}),
        (["73728x18432"], {"72k_x_18k"}),
        (["llama-2-7b.*"], {"llama-2-7b.qkv", "llama-2-7b.gate_up", "llama-2-7b.down"}),
        (["llama-2-7b"], {"llama-2-7b.qkv", "4096x4096", "llama-2-7b.gate_up", "llama-2-7b.down"}),
        (["4096x4096", "72k*"], {"4096x4096", "72k_x_18k"}),
    ],
)
def test_layers_are_selected_by_name_shape_or_model(suite, asked, found):
    assert {cell.layer for cell in plan(suite, layers=asked)} == found


def test_backends_and_batches_are_selected_in_the_suites_order(suite):
    cells = plan(suite, backends=["marlin", "cublas_fp16"], batches=[16])
    assert {cell.backends for cell in cells} == {("cublas_fp16", "marlin")}
    assert {cell.M for cell in cells} == {16}


def test_selecting_leaves_the_chosen_cells_as_they_were(suite):
    everything = {cell.id: cell for cell in plan(suite)}
    assert all(everything[cell.id] == cell for cell in plan(suite, only=["*/M16"], layers=["4096x4096"]))


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        ({"only": ["nothing/*"]}, "no cell matches 'nothing/*': a cell of this suite is called 72k_x_18k/g128/M1"),
        ({"layers": ["72k_x_19k"]}, "suite mine has no layer '72k_x_19k': did you mean 72k_x_18k?"),
        ({"backends": ["marln"]}, "suite mine has no backend 'marln': did you mean marlin?"),
        ({"batches": [3]}, "suite mine has no M=3: it has 1, 16"),
        (
            {"only": ["72k*", "gone*"]},
            "no cell matches 'gone*': a cell of this suite is called 72k_x_18k/g128/M1",
        ),
        (
            {"only": ["72k*"], "layers": ["4096x4096"]},
            "no cell matches '72k*': a cell of this suite is called 4096x4096/g128/M1",
        ),
    ],
)
def test_a_selection_that_matches_nothing_is_a_sentence(suite, selection, sentence):
    with pytest.raises(SelectionError) as caught:
        plan(suite, **selection)
    assert str(caught.value) == sentence


def test_an_empty_selection_is_not_everything(suite):
    for nothing in ({"only": []}, {"layers": []}, {"backends": []}, {"batches": []}):
        with pytest.raises(SelectionError):
            plan(suite, **nothing)


def test_the_floor_of_a_launch_is_the_higher_of_bytes_and_flop(suite):
    cell = next(cell for cell in plan(suite) if cell.id == "72k_x_18k/g128/M16")
    floors = launch_floors(cell, 600e9, 125e12, format_of=stored_as)
    assert floors["cublas_fp16"] / floors["marlin"] == pytest.approx(3.867, abs=5e-4)
    slow_math = launch_floors(cell, 600e9, 1e9, format_of=stored_as)
    assert slow_math["marlin"] == slow_math["cublas_fp16"] == pytest.approx(2 * 16 * 73728 * 18432 / 1e9)


def test_the_floor_of_a_cell_sums_backends_timers_and_blocks(suite):
    cell = next(cell for cell in plan(suite) if cell.id == "72k_x_18k/g128/M16")
    launches = sum(launch_floors(cell, 600e9, 125e12, format_of=stored_as).values())
    assert floor_seconds(cell, 600e9, 125e12, format_of=stored_as) == pytest.approx(launches)
    ample = Sampling(min_blocks=30, block_seconds=1e-6, cell_seconds=100.0)
    assert floor_seconds(cell, 600e9, 125e12, sampling=ample, format_of=stored_as) == pytest.approx(30 * launches)
    both_timers = dataclasses.replace(cell, timers=("kernel", "cold"))
    assert floor_seconds(both_timers, 600e9, 125e12, format_of=stored_as) == pytest.approx(2 * launches)
    long_blocks = Sampling(min_blocks=30, block_seconds=0.01, cell_seconds=100.0)
    assert floor_seconds(cell, 600e9, 125e12, sampling=long_blocks, format_of=stored_as) == pytest.approx(3 * 30 * 0.01)
    tight = Sampling(min_blocks=30, block_seconds=0.01, cell_seconds=0.3)
    assert floor_seconds(cell, 600e9, 125e12, sampling=tight, format_of=stored_as) == pytest.approx(0.3)
