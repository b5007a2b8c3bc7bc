"""Accepted runs: what is kept, what may replace it; and cells over many runs."""

import numpy as np
import pytest
from synthetic_run import RunSpec, environment, make_record

from marlin_bench.baseline import (
    KEPT_BLOCKS,
    BaselineError,
    baseline_folder,
    find_baseline,
    list_baselines,
    set_baseline,
    slimmed,
)
from marlin_bench.compare import compare
from marlin_bench.gate import GateError
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.history import change_points, history
from marlin_bench.judgement import Judgement
from marlin_bench.plots.history import draw
from marlin_bench.record import Origin, Status
from marlin_bench.store import find_runs, newest_run, read_run

POLICY = RelativeRule(rule="relative")
TIMES = {"cublas_fp16": 3e-5, "marlin": 1e-5}


def run(results, name, *, slower=0.0, blocks=30, started=None, **changes):
    records = [
        make_record(backend, M, time * (1 + slower * (backend == "marlin")), blocks=blocks, run=name, noise=0.002)
        for backend, time in TIMES.items()
        for M in (1, 16)
    ]
    made = RunSpec(records, name=name, environment=environment(**changes)).write(results)
    if started is None:
        return made
    return made.__class__(made.folder, made.meta.model_copy(update={"started": started}), made.records)


def test_an_accepted_run_is_small_found_for_its_device_and_suite_and_compares_as_the_whole(tmp_path):
    whole = run(tmp_path, "20261121T080000Z_h200_abc", blocks=300)
    accepted = set_baseline(whole, tmp_path, POLICY)
    assert accepted.folder == baseline_folder(tmp_path, "NVIDIA H200", "h200")
    kept = find_baseline(tmp_path, whole.meta)
    assert {len(record.blocks) for record in kept.records} == {KEPT_BLOCKS}
    assert (accepted.folder / "records.jsonl.gz").stat().st_size < (whole.folder / "records.jsonl").stat().st_size / 20
    assert {change.judgement for change in compare(kept.records, whole.records, POLICY)} == {Judgement.SAME}
    assert [meta.run for _, meta in list_baselines(tmp_path)] == [whole.meta.run]


def test_a_baseline_is_no_run_of_its_own(tmp_path):
    whole = run(tmp_path, "20261121T080000Z_h200_abc")
    set_baseline(whole, tmp_path, POLICY)
    assert find_runs(tmp_path) == [whole.folder]
    assert newest_run(tmp_path) == whole.folder


def test_blocks_stay_paired_and_a_record_that_ended_early_keeps_enough(tmp_path):
    long = make_record("cublas_fp16", 1, 3e-5, blocks=200)
    early = make_record("marlin", 1, 1e-5, blocks=30)
    kept = {record.backend: {block.index for block in record.blocks} for record in slimmed([long, early])}
    assert len(kept["marlin"]) >= 6
    assert len(kept["cublas_fp16"]) == KEPT_BLOCKS


def test_a_better_baseline_is_replaced_only_by_force(tmp_path):
    good, slow = (run(tmp_path, name, slower=share) for name, share in (("a", 0.0), ("b", 0.05)))
    set_baseline(good, tmp_path, POLICY)
    with pytest.raises(BaselineError, match=r"2 cells are worse than in the accepted run a, .*--force"):
        set_baseline(slow, tmp_path, POLICY)
    assert find_baseline(tmp_path, good.meta).meta.run == "a"
    assert set_baseline(slow, tmp_path, POLICY, force=True).replaced == "a"
    assert find_baseline(tmp_path, good.meta).meta.run == "b"
    set_baseline(good, tmp_path, POLICY)  # a better one needs no force


def test_a_run_that_lost_a_cell_does_not_replace_the_one_that_has_it(tmp_path):
    whole = run(tmp_path, "a")
    set_baseline(whole, tmp_path, POLICY)
    partial = RunSpec(whole.records[:-1], name="b").write(tmp_path)
    with pytest.raises(BaselineError, match="is not now"):
        set_baseline(partial, tmp_path, POLICY)


def test_the_same_run_replaces_itself_whatever_cannot_be_compared(tmp_path):
    whole = run(tmp_path, "a")
    short = RunSpec([*whole.records, make_record("marlin", 32, 1e-5, blocks=3)], name="b").write(tmp_path)
    set_baseline(short, tmp_path, POLICY)
    assert set_baseline(short, tmp_path, POLICY).replaced == "b"
    broken = RunSpec([*whole.records, make_record("marlin", 32, 1, status=Status.WRONG)], name="c").write(tmp_path)
    with pytest.raises(BaselineError, match="is wrong now"):
        set_baseline(broken, tmp_path, POLICY)


def test_several_runs_of_one_code_are_one_baseline_and_show_how_processes_differ(tmp_path):
    runs = [run(tmp_path, name, slower=shift, blocks=30) for name, shift in (("a", 0.0), ("b", 0.04), ("c", 0.0))]
    accepted = set_baseline(runs[0], tmp_path, POLICY, others=runs[1:])
    kept = find_baseline(tmp_path, runs[0].meta)
    assert accepted.folder.name == "h200"
    assert {len(record.blocks) for record in kept.records} == {60}
    slow = run(tmp_path, "d", slower=0.04)

    def judgement(old):
        found = compare(old, slow.records, POLICY, chosen=lambda record: record.backend == "marlin")
        return {change.judgement for change in found}

    assert judgement(runs[0].records) == {Judgement.WORSE}
    assert Judgement.WORSE not in judgement(kept.records)


@pytest.mark.parametrize(
    ("change", "what"), [({"code_digest": "1" * 16}, "code"), ({"device_name": "NVIDIA A10"}, "device")]
)
def test_runs_of_two_codes_are_no_baseline(tmp_path, change, what):
    first, other = run(tmp_path, "a"), run(tmp_path, "b", **change)
    with pytest.raises(BaselineError, match=f"differ in their {what}"):
        set_baseline(first, tmp_path, POLICY, others=[other])


@pytest.mark.parametrize("dirty", [True, None])
def test_uncommitted_code_is_accepted_only_by_force(tmp_path, dirty):
    made = run(tmp_path, "a", dirty=dirty)
    with pytest.raises(BaselineError, match="uncommitted"):
        set_baseline(made, tmp_path, POLICY)
    assert set_baseline(made, tmp_path, POLICY, force=True).replaced is None


def test_published_and_failed_runs_are_never_accepted(tmp_path):
    quoted = RunSpec([], name="quoted", origin=Origin.PUBLISHED).write(tmp_path)
    with pytest.raises(GateError, match="must be measured"):
        set_baseline(quoted, tmp_path, POLICY, force=True)
    failed = RunSpec([make_record("marlin", 1, 1, status=Status.CRASHED)], name="failed").write(tmp_path)
    with pytest.raises(GateError, match="no right record"):
        set_baseline(failed, tmp_path, POLICY, force=True)


def test_a_baseline_reads_back_as_any_run(tmp_path):
    whole = run(tmp_path, "a")
    folder = set_baseline(whole, tmp_path, POLICY).folder
    assert [record.id for record in read_run(folder).records] == [record.id for record in whole.records]


def test_history_marks_the_run_at_which_a_cell_changed_for_good(tmp_path):
    pytest.importorskip("ruptures")
    runs = [
        run(tmp_path, f"r{day:02}", slower=0.06 * (day >= 7), commit=f"c{day}", started=f"202611{day:02}T000000Z")
        for day in range(1, 13)
    ]
    found = {(one.cell, one.backend): one for one in history(reversed(runs))}
    series = found["square_8k/g128/M16", "marlin"]
    assert [point.commit for point in series.points] == [f"c{day}" for day in range(1, 13)]
    assert [series.points[index].commit for index in series.changes] == ["c7"]
    assert series.step(series.changes[0]) == pytest.approx(1.06, abs=0.005)
    assert found["square_8k/g128/M16", "cublas_fp16"].changes == ()


def test_a_drawn_history_stands_every_run_in_one_place_under_its_commit(tmp_path):
    runs = [run(tmp_path, f"r{day:02}", commit=f"c{day}", started=f"202611{day:02}T000000Z") for day in range(1, 6)]
    late = [r.__class__(r.folder, r.meta, [one for one in r.records if one.backend != "marlin"]) for r in runs[:2]]
    figure = draw(history([*late, *runs[2:]]))
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == [f"c{day}" for day in range(1, 6)]
    lines = {container.get_label(): list(container.lines[0].get_xdata()) for container in panel.containers}
    assert lines == {"cublas_fp16": [0, 1, 2, 3, 4], "marlin": [2, 3, 4]}


def test_one_outlier_and_plain_noise_are_no_change():
    pytest.importorskip("ruptures")
    rng = np.random.default_rng(1)
    steady = [change_points(list(rng.normal(0, 0.005, 20))) for _ in range(100)]
    assert sum(bool(found) for found in steady) <= 10
    outlier = list(rng.normal(0, 0.002, 20))
    outlier[10] += 0.05
    assert change_points(outlier) == ()
    assert change_points([0.0, 0.0, 0.5]) == ()  # too few runs to tell
