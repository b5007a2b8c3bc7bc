"""Thousands of records stay quick to open: what is counted is work, not seconds, which a busy machine would spoil."""

import json
import sys
from collections import Counter
from dataclasses import replace

import pytest
from synthetic_run import RunSpec, h200_records

from marlin_bench.record import Telemetry
from marlin_bench.record_table import record_table
from marlin_bench.report import page
from marlin_bench.roofline import roofs_from_ceilings
from marlin_bench.speedup import rows
from marlin_bench.store import StoreError, published_folder, read_run

PUBLISHED = published_folder() / "h200" / "20261121T135146Z_twins_33a743698253"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """66 records of 30 blocks."""
    return RunSpec(h200_records()).write(tmp_path_factory.mktemp("results"))


def calls(work):
    """Calls of Python functions that `work` makes, and what it gives."""
    seen = Counter()

    def count(_frame, event, _argument):
        seen[event] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        result = work()
    finally:
        sys.setprofile(before)
    return seen["call"], result


def test_reading_a_record_runs_no_python_for_its_blocks(run):
    read_run(run.folder)  # what is imported and compiled once
    for with_telemetry in (True, False):
        made, found = calls(lambda wish=with_telemetry: read_run(run.folder, with_telemetry=wish))
        assert len(found.records[0].blocks) == 30
        assert made < 8 * len(found.records) + 200


def test_a_row_and_its_line_cost_a_bounded_number_of_calls(run):
    roofs = roofs_from_ceilings(run.meta.ceilings)
    record_table(rows(run.records, roofs))
    made, found = calls(lambda: rows(run.records, roofs))
    assert made < 130 * len(found)  # 97
    made, table = calls(lambda: record_table(found))
    assert made < 70 * len(table.lines)  # 51


def test_a_report_costs_a_bounded_number_of_calls(run):
    roofs = roofs_from_ceilings(run.meta.ceilings)
    found = rows(run.records, roofs)
    page.render(run, roofs, found)
    made, _ = calls(lambda: page.render(run, roofs, found))
    assert made < 1600 * len(found)  # 1184


def test_without_telemetry_everything_else_is_the_same():
    full, light = read_run(PUBLISHED), read_run(PUBLISHED, with_telemetry=False)
    assert any(block.telemetry for record in full.records for block in record.blocks)
    bare = [
        record.model_copy(
            update={
                name: [replace(block, telemetry=None) for block in getattr(record, name)]
                for name in ("blocks", "throttled_blocks")
            }
        )
        for record in full.records
    ]
    assert bare == light.records


@pytest.mark.parametrize("with_telemetry", [True, False])
def test_whatever_stands_in_a_record_is_read_right_or_refused(run, tmp_path, with_telemetry):
    record = run.records[0]
    block = replace(
        record.blocks[0],
        telemetry=Telemetry(power_w=1.0, event_reasons=["a}b"], throttle_s={"sw_power_cap": 0.1}),
    )
    tricky = record.model_copy(update={"reason": 'said ,"telemetry":{"power_w":1} once', "blocks": [block, block]})
    folder = RunSpec([tricky], name="tricky").write(tmp_path).folder
    (found,) = read_run(folder, with_telemetry=with_telemetry).records
    assert found.reason == tricky.reason
    assert [one.times for one in found.blocks] == [block.times, block.times]
    path = folder / "records.jsonl"
    line = json.loads(path.read_text())
    line["blocks"][0]["times"] = [-1.0]
    path.write_text(json.dumps(line, separators=(",", ":")) + "\n")
    with pytest.raises(StoreError, match="not a record"):
        read_run(folder, with_telemetry=with_telemetry)
