"""A record cannot claim what was not measured."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from synthetic_run import make_record

from marlin_bench.record import Published, Record, Status, record_id, schema_text

ROOT = Path(__file__).parent.parent


def changed(record, **fields):
    return Record.model_validate({**record.model_dump(), **fields})


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_only_an_ok_record_carries_samples(status):
    with pytest.raises(ValidationError, match="cannot carry samples"):
        changed(make_record("marlin", 16, 1e-5), status=status)


def test_an_ok_record_needs_samples():
    with pytest.raises(ValidationError, match="needs samples"):
        changed(make_record("marlin", 16, 1e-5), blocks=[])


def test_a_quotation_has_neither_samples_nor_a_missing_source():
    quoted = Published(speedup=3.87, source="Fig. 1", clocks="boost")
    with pytest.raises(ValidationError, match="quotes a source"):
        changed(make_record("marlin", 16, 1e-5), origin="published", published=quoted)
    with pytest.raises(ValidationError, match="cannot quote"):
        changed(make_record("marlin", 16, 1e-5), published=quoted)
    record = make_record("marlin", 16, 1e-5)
    assert changed(record, origin="published", published=quoted, blocks=[], checks=[]).times == []


@pytest.mark.parametrize("time", [float("nan"), float("inf"), -1.0])
def test_a_sample_is_a_finite_time(time):
    record = make_record("marlin", 16, 1e-5).model_dump()
    record["blocks"][0]["times"] = [time]
    with pytest.raises(ValidationError):
        Record.model_validate(record)


def test_an_id_names_what_was_measured_and_nothing_else():
    assert record_id("h200", "s/c", "marlin", "kernel") == record_id("h200", "s/c", "marlin", "kernel")
    others = {record_id(*parts) for parts in (("h200", "s/c", "marlin", "cold"), ("a10", "s/c", "marlin", "kernel"))}
    assert record_id("h200", "s/c", "marlin", "kernel") not in others


def test_the_shipped_schema_is_current():
    assert (ROOT / "docs" / "record.schema.json").read_text() == schema_text(), (
        "write marlin_bench.record.schema_text() to docs/record.schema.json"
    )
