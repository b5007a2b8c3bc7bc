"""The command line's selection on stored records."""

import pytest
from synthetic_run import h200_records, make_record

from marlin_bench.cli import options
from marlin_bench.plan import Selection, SelectionError
from marlin_bench.selection import select


def no_models(name):
    return frozenset()


def test_options_understand_commas_and_repetition():
    assert options.selection(["a/*"], ["x,y", "z"], None, ["1,16", "64"]) == Selection(
        ("a/*",), ("x", "y", "z"), None, (1, 16, 64)
    )
    assert options.selection(None, None, None, None) == Selection()


def test_a_model_selects_its_layers_by_shape():
    records = h200_records(layers=("square_8k", "mlp_up"))
    chosen = select(
        records, Selection(layers=("llama",)), lambda name: frozenset({(8192, 28672)} if name == "llama" else ())
    )
    assert {record.layer for record in chosen} == {"mlp_up"}
    with pytest.raises(SelectionError, match="no layer 'gpt'"):
        select(records, Selection(layers=("gpt",)), no_models)


def test_parts_that_exist_but_never_together_are_refused():
    records = [make_record("marlin", 1, 1e-5), make_record("cublas_fp16", 16, 1e-5)]
    with pytest.raises(SelectionError, match="whole selection"):
        select(records, Selection(backends=("marlin",), batches=(16,)), no_models)


def test_a_backend_of_its_own_process_belongs_to_its_planned_cell():
    record = make_record("humming", 16, 1e-5).model_copy(update={"cell": "square_8k/g128/M16+humming"})
    assert select([record], Selection(only=("*/M16",)), no_models) == [record]
