"""Exported rows: the fields, their units, and what stands where nothing is known."""

import csv
import io
import json
import math

import pytest
from synthetic_run import H200_CEILINGS, h200_records, make_record, published_record

from marlin_bench.export import FIELDS, ExportError, exported, to_csv, to_json, write
from marlin_bench.record import EnergyUse, Status
from marlin_bench.roofline import roofs_from_ceilings
from marlin_bench.speedup import rows

ROOFS = roofs_from_ceilings(H200_CEILINGS)
PROMISED = [
    *("backend", "device", "layer", "M", "N", "K", "group_size", "format", "timer", "status"),
    *("time_s", "time_low_s", "time_high_s", "speedup", "ideal_speedup", "fraction_of_ideal"),
    *("achieved_flops", "achieved_bandwidth", "sm_clock_hz", "cycles", "id", "origin", "flags"),
    *("energy_per_call_j", "energy_per_token_j"),
]


@pytest.fixture
def made():
    refused = make_record("naive_w4a16", 128, 0, status=Status.UNSUPPORTED, reason="M 128 is above 64")
    return rows([*h200_records(layers=("square_8k",)), refused], ROOFS)


def test_the_fields_are_the_promised_ones_in_their_order(made):
    assert list(FIELDS) == PROMISED
    assert list(json.loads(to_json(made))[0]) == PROMISED
    assert next(csv.reader(io.StringIO(to_csv(made)))) == PROMISED


def test_json_holds_one_object_a_record_in_si_units(made):
    data = json.loads(to_json(made))
    assert len(data) == len(made) == 25
    marlin = next(line for line in data if line["backend"] == "marlin" and line["M"] == 1)
    assert marlin["time_s"] == pytest.approx(17.6e-6, rel=0.01)
    assert marlin["time_low_s"] < marlin["time_s"] < marlin["time_high_s"]
    assert marlin["speedup"] == pytest.approx(38.5 / 17.6, rel=0.01)
    assert marlin["ideal_speedup"] == pytest.approx(3.876, abs=0.001)
    assert marlin["fraction_of_ideal"] == pytest.approx(marlin["speedup"] / marlin["ideal_speedup"])
    assert marlin["achieved_flops"] == pytest.approx(2 * 8192**2 / marlin["time_s"])
    assert marlin["cycles"] == pytest.approx(marlin["time_s"] * 1980e6)
    assert (marlin["group_size"], marlin["format"], marlin["timer"]) == (128, "int4_g128", "kernel")
    assert (marlin["status"], marlin["origin"], marlin["flags"]) == ("ok", "measured", [])


def test_what_was_not_measured_is_null_and_empty_in_csv(made):
    refused = json.loads(to_json(made))[-1]
    assert refused["status"] == "unsupported"
    assert {key for key, value in refused.items() if value is None} == {
        "time_s", "time_low_s", "time_high_s", "speedup", "ideal_speedup", "fraction_of_ideal", "achieved_flops",
        "achieved_bandwidth", "sm_clock_hz", "cycles", "energy_per_call_j", "energy_per_token_j",
    }  # fmt: skip
    line = list(csv.DictReader(io.StringIO(to_csv(made))))[-1]
    assert line["time_s"] == ""
    assert line["M"] == "128"


def test_energy_is_that_of_a_call_and_of_a_token():
    record = make_record("marlin", 16, 1e-5).model_copy(update={"energy": EnergyUse(calls=100, seconds=2, power_w=400)})
    (row,) = rows([record], ROOFS)
    assert exported(row).energy_per_call_j == pytest.approx(8.0)
    assert exported(row).energy_per_token_j == pytest.approx(0.5)


def test_bounds_that_nothing_bounds_are_null_not_infinite():
    few = exported(rows([make_record("marlin", 1, 1e-5, blocks=3)], ROOFS)[0])
    assert few.time_s is not None
    assert (few.time_low_s, few.time_high_s) == (None, None)
    quoted = exported(rows([published_record(speedup=3.87)], ROOFS)[0])
    assert (quoted.origin, quoted.speedup, quoted.time_s) == ("published", 3.87, None)


def test_csv_joins_flags_and_survives_commas(made):
    flagged = make_record("marlin", 1, 1e-5, flags=["throttled", "not_converged"], layer="a,b")
    line = next(csv.DictReader(io.StringIO(to_csv(rows([flagged], None)))))
    assert line["flags"] == "not_converged;throttled"
    assert line["layer"] == "a,b"


def test_parquet_has_the_same_columns_with_types(made, tmp_path):
    import pyarrow.parquet

    path = tmp_path / "run.parquet"
    write(made, "parquet", path)
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == PROMISED
    assert table.num_rows == len(made)
    assert str(table.schema.field("M").type) == "int64"
    write(made[-1:], "parquet", path)  # every value missing, the type stays
    assert str(pyarrow.parquet.read_table(path).schema.field("time_s").type) == "double"


def test_csv_and_parquet_and_json_hold_the_same_numbers(made, tmp_path):
    import pandas

    for target in ("csv", "parquet", "json"):
        write(made, target, tmp_path / f"run.{target}")
    frames = [
        pandas.read_csv(tmp_path / "run.csv"),
        pandas.read_parquet(tmp_path / "run.parquet"),
        pandas.read_json(tmp_path / "run.json"),
    ]
    for frame in frames[1:]:
        assert frame["time_s"].tolist()[:-1] == pytest.approx(frames[0]["time_s"].tolist()[:-1])
        assert math.isnan(frame["speedup"].tolist()[-1])


def test_a_file_that_cannot_be_written_is_a_sentence(made, tmp_path):
    with pytest.raises(ExportError, match="cannot write"):
        write(made, "csv", tmp_path / "no" / "such" / "folder.csv")
    with pytest.raises(ExportError, match="cannot write"):
        write(made, "parquet", tmp_path / "no" / "folder.parquet")


def test_without_pyarrow_the_sentence_says_how_to_get_it(made, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportError, match="pip install"):
        write(made, "parquet", tmp_path / "run.parquet")
