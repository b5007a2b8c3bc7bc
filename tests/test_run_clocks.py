"""The sweep under a clock policy: what is held reaches every record, and what cannot be had stops the run."""

from contextlib import contextmanager

import pytest
from simulated_suite import InlineExecutor, QuietProgress, simulated_suite

from marlin_bench.clocks import ClockError, ClockState
from marlin_bench.plan import Selection
from marlin_bench.run import run_suite
from marlin_bench.store import read_run


class UuidExecutor(InlineExecutor):
    """Inline sessions whose device has a UUID, as a GPU has."""

    def open(self, device):
        session = super().open(device)
        session.ready = session.ready.model_copy(update={"device_uuid": f"GPU-{device}"})
        return session


def sweep(tmp_path, policy, progress, devices=None):
    suite = simulated_suite(["sim_fp16"], M=[1], extra=f"clocks: {policy}")
    return run_suite(
        suite, selection=Selection(), results=tmp_path, devices=devices, budget_s=None, progress=progress,
        executor=UuidExecutor(),
    )  # fmt: skip


def hold(states, seen):
    @contextmanager
    def hold_clocks(request, uuid, *, run, measure):
        seen.append((request.policy, request.sm_mhz, uuid, run))
        yield states.pop(0)
        seen.append(f"released {uuid}")

    return hold_clocks


def test_locked_clocks_are_asked_for_recorded_and_released(tmp_path, monkeypatch):
    seen, progress = [], QuietProgress()
    state = ClockState(locked=True, sm_hz=885e6, warning="persistence mode is off", profile="sustained")
    monkeypatch.setattr("marlin_bench.run.hold_clocks", hold([state], seen))
    outcome = sweep(tmp_path, "{policy: lock, sm_mhz: 885}", progress)
    run = read_run(outcome.folder)
    assert seen == [("lock", 885, "GPU-cpu", run.meta.run), "released GPU-cpu"]
    assert [(record.clocks_locked, record.profile) for record in run.records] == [(True, "sustained")]
    assert (run.meta.clock_policy, run.meta.locked_sm_hz) == ("lock", 885e6)
    assert "persistence mode is off" in progress.notes


def test_one_device_without_the_lock_means_no_record_claims_it(tmp_path, monkeypatch):
    seen = []
    states = [ClockState(locked=True, sm_hz=885e6), ClockState(locked=False, warning="no rights")]
    monkeypatch.setattr("marlin_bench.run.hold_clocks", hold(states, seen))
    outcome = sweep(tmp_path, "{policy: lock, sm_mhz: 885}", QuietProgress(), devices="0,1")
    assert {record.clocks_locked for record in read_run(outcome.folder).records} == {False}
    assert seen[-2:] == ["released GPU-cuda:1", "released GPU-cuda:0"]


def test_clocks_that_are_required_and_cannot_be_had_end_the_run_before_it_measures(tmp_path, monkeypatch):
    @contextmanager
    def refuse(request, uuid, *, run, measure):
        raise ClockError("the suite requires locked clocks: locking needs root")
        yield

    monkeypatch.setattr("marlin_bench.run.hold_clocks", refuse)
    with pytest.raises(ClockError, match="requires locked clocks"):
        sweep(tmp_path, "{policy: require, sm_mhz: base}", QuietProgress())
    assert not list(tmp_path.rglob("records.jsonl"))


def test_observing_says_nothing_is_locked(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("marlin_bench.run.hold_clocks", hold([ClockState(locked=False)], seen))
    outcome = sweep(tmp_path, "observe", QuietProgress())
    assert seen[0][0] == "observe"
    assert read_run(outcome.folder).records[0].clocks_locked is False
