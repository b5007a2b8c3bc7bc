"""Run folders survive power cuts, full disks, second writers and other schemas."""

import json
import os
import socket

import pytest
from synthetic_run import make_record

from marlin_bench.record import Environment, Origin, RunMeta
from marlin_bench.run_writer import DiskFullError, open_writer
from marlin_bench.store import (
    StoreError,
    find_runs,
    newest_run,
    publish,
    published_folder,
    read_run,
    results_folder,
)


def make_meta(run="20260101T000000Z_demo_abc", **changes):
    environment = Environment(
        device_name="NVIDIA H200", device_kind="cuda", cpu="x", cpu_threads=1, python="3", commit="abc", dirty=False,
        code_digest="d",
    )  # fmt: skip
    return RunMeta(
        run=run, suite="demo", suite_text="", suite_digest="d", started="20260101T000000Z", environment=environment,
        cells=1, **changes,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    with open_writer(tmp_path / "h200" / "run") as writer:
        writer.write_meta(make_meta())
        for M in (1, 16, 32):
            writer.append(make_record("marlin", M, 1e-5))
    return tmp_path / "h200" / "run"


def test_what_was_written_is_read_back(folder):
    run = read_run(folder)
    assert [record.M for record in run.records] == [1, 16, 32]
    assert run.meta == make_meta()


def test_a_cut_last_line_costs_that_line_alone_and_the_next_record_starts_a_line(folder):
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert [record.M for record in read_run(folder).records] == [1, 16]
    with open_writer(folder) as writer:
        writer.append(make_record("marlin", 64, 1e-5))
    assert [record.M for record in read_run(folder).records] == [1, 16, 64]


def test_a_broken_line_in_the_middle_is_named(folder):
    path = folder / "records.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:50]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(StoreError, match=r"records.jsonl:2 is not a record"):
        read_run(folder)


def test_a_record_measured_again_replaces_the_first(folder):
    with open_writer(folder) as writer:
        writer.append(make_record("marlin", 16, 9e-5))
    (found,) = (record for record in read_run(folder).records if record.M == 16)
    assert min(found.times) > 5e-5


def test_a_newer_schema_is_refused_with_its_number(folder):
    path = folder / "run.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(StoreError, match="schema version 99"):
        read_run(folder)


def test_a_folder_without_run_json_is_no_run(tmp_path):
    with pytest.raises(StoreError, match=r"has no run\.json"):
        read_run(tmp_path)


def test_the_second_writer_is_told_who_holds_the_folder(folder):
    with (
        open_writer(folder),
        pytest.raises(StoreError, match=f"written by process {os.getpid()} on {socket.gethostname()}"),
        open_writer(folder),
    ):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(folder):
    (folder / "writer.lock").write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    with open_writer(folder):
        pass
    assert not (folder / "writer.lock").exists()


def test_a_full_disk_leaves_every_earlier_record(folder, monkeypatch):
    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    before = (folder / "records.jsonl").read_bytes()
    with open_writer(folder) as writer:
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(DiskFullError, match="No space left on device"):
            writer.append(make_record("marlin", 64, 1e-5))
        with pytest.raises(DiskFullError):
            writer.write_meta(make_meta())
    assert (folder / "records.jsonl").read_bytes() == before
    assert read_run(folder).meta == make_meta()


def test_runs_are_found_in_order_of_time_and_a_quotation_is_never_the_newest(tmp_path):
    for name, origin in (
        ("20260102T000000Z_b_x", Origin.MEASURED),
        ("20260101T000000Z_a_x", Origin.MEASURED),
        ("20270101T000000Z_paper", Origin.PUBLISHED),
    ):
        with open_writer(tmp_path / "a10" / name) as writer:
            writer.write_meta(make_meta(name, origin=origin))
    assert [path.name[:8] for path in find_runs(tmp_path)] == ["20260101", "20260102", "20270101"]
    assert newest_run(tmp_path).name == "20260102T000000Z_b_x"
    assert newest_run(tmp_path / "nothing") is None


def test_a_published_run_is_packed_and_reads_the_same(folder, tmp_path):
    target = publish(folder, tmp_path / "published")
    assert target == tmp_path / "published" / "h200" / "run"
    assert {path.name for path in target.iterdir()} == {"run.json", "records.jsonl.gz"}
    assert read_run(target).records == read_run(folder).records
    (target / "records.jsonl.gz").write_bytes((target / "records.jsonl.gz").read_bytes()[:-30])
    with pytest.raises(StoreError, match="cannot be unpacked"):
        read_run(target)


@pytest.mark.parametrize(("commit", "dirty"), [("unknown", None), ("abc", True), ("abc", None)])
def test_a_run_of_unknown_or_changed_code_is_not_published(folder, tmp_path, commit, dirty):
    meta = make_meta()
    changed = meta.environment.model_copy(update={"commit": commit, "dirty": dirty})
    (folder / "run.json").write_text(meta.model_copy(update={"environment": changed}).model_dump_json())
    with pytest.raises(StoreError, match="is not published"):
        publish(folder, tmp_path / "published")


def test_lines_are_compact_and_start_with_the_schema_version(folder):
    line = (folder / "records.jsonl").read_text().splitlines()[0]
    assert line.startswith('{"schema_version":1,')
    assert "null" not in line.replace('"group_size":null', "")


def test_results_go_where_the_option_then_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.delenv("MARLIN_BENCH_RESULTS", raising=False)
    assert str(results_folder()) == "results"
    monkeypatch.setenv("MARLIN_BENCH_RESULTS", str(tmp_path))
    assert results_folder() == tmp_path
    assert results_folder(tmp_path / "x") == tmp_path / "x"
    assert published_folder().name == "published"
