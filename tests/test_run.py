"""The sweep on simulated devices: nothing is lost, nothing is measured twice, one bad backend costs itself alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from simulated_suite import InlineExecutor, QuietProgress, simulated_executor, simulated_suite

from marlin_bench.device import DeviceError
from marlin_bench.exit_codes import ExitCode
from marlin_bench.plan import Selection
from marlin_bench.record import Status
from marlin_bench.run import run_suite
from marlin_bench.store import StoreError, find_runs, read_run
from marlin_bench.verify import verify_suite

TESTS = Path(__file__).parent


def run(suite, results, progress=None, devices=None, budget_s=None, executor=None, selection=None):
    return run_suite(
        suite,
        selection=selection or Selection(),
        results=results,
        devices=devices,
        budget_s=budget_s,
        progress=progress or QuietProgress(),
        executor=executor or InlineExecutor(),
    )


def statuses(folder):
    return {(record.cell, record.backend): record.status for record in read_run(folder).records}


def test_a_sweep_records_every_backend_of_every_cell(tmp_path):
    outcome = run(simulated_suite(["sim_fp16", "sim_int4"]), tmp_path)
    assert outcome.exit_code is ExitCode.DONE
    assert (outcome.cells_done, outcome.cells_total) == (2, 2)
    assert set(statuses(outcome.folder).values()) == {Status.OK}
    assert len(statuses(outcome.folder)) == 4
    stored = read_run(outcome.folder)
    assert {ceiling.name for ceiling in stored.meta.ceilings} == {"ram_triad", "dense_fp32"}
    assert stored.meta.wall_s > 0
    assert outcome.folder.parent.name == "simulated-gpu-1"


@pytest.mark.parametrize("bad", ["sim_segfault", "sim_illegal_instruction"])
def test_a_crash_costs_one_backend_in_one_cell(tmp_path, bad):
    outcome = run(simulated_suite(["sim_fp16", bad, "sim_int4"], M=[4]), tmp_path, executor=simulated_executor())
    found = statuses(outcome.folder)
    assert {status for (_, backend), status in found.items() if backend == bad} == {Status.CRASHED}
    assert {status for (_, backend), status in found.items() if backend != bad} == {Status.OK}
    assert outcome.exit_code is ExitCode.PARTLY_FAILED
    reason = next(record.reason for record in read_run(outcome.folder).records if record.backend == bad)
    assert "signal 11" in reason or "illegal instruction" in reason


def test_blocks_finished_before_a_crash_are_kept(tmp_path):
    outcome = run(
        simulated_suite(["sim_fp16", "sim_segfault", "sim_int4"], M=[1]), tmp_path, executor=simulated_executor()
    )
    record = next(record for record in read_run(outcome.folder).records if record.backend == "sim_int4")
    assert len(record.blocks) > 6
    indices = [block.index for block in record.blocks]
    assert indices == sorted(set(indices))


def test_a_hang_is_a_timeout_and_the_sweep_goes_on(tmp_path):
    outcome = run(
        simulated_suite(["sim_fp16", "sim_hang", "sim_int4"], M=[1], timeout=4.0),
        tmp_path,
        executor=simulated_executor(),
    )
    found = statuses(outcome.folder)
    assert found["256x128/g128/M1", "sim_hang"] is Status.TIMEOUT
    assert found["256x128/g128/M1", "sim_int4"] is Status.OK


def test_wrong_results_decide_the_exit_code(tmp_path):
    outcome = run(
        simulated_suite(["sim_fp16", "gives_zeros", "sim_segfault"], M=[1]), tmp_path, executor=simulated_executor()
    )
    assert outcome.exit_code is ExitCode.WRONG_RESULT


def test_nothing_measured_is_no_success(tmp_path):
    outcome = run(simulated_suite(["sim_missing"], M=[1]), tmp_path)
    assert outcome.exit_code is ExitCode.NOTHING_MEASURED


def test_a_backend_of_its_own_process_is_paired_with_the_baselines_there(tmp_path):
    outcome = run(simulated_suite(["sim_fp16", "sim_own", "sim_int4"], M=[1]), tmp_path)
    records = {(record.cell, record.backend): record for record in read_run(outcome.folder).records}
    assert records["256x128/g128/M1+sim_own", "sim_own"].isolated
    assert records["256x128/g128/M1+sim_own", "sim_fp16"].isolated
    assert not records["256x128/g128/M1", "sim_int4"].isolated
    again = run(simulated_suite(["sim_fp16", "sim_own", "sim_int4"], M=[1]), tmp_path)
    assert again.folder != outcome.folder  # complete: a further run is a new one


def test_a_budget_stops_after_the_cell_and_resume_measures_only_the_rest(tmp_path):
    suite = simulated_suite(["sim_fp16", "sim_int4"], M=[1, 2, 3])
    first = run(suite, tmp_path, budget_s=0.0)
    assert (first.cells_done, first.cells_total) == (0, 3)
    one = run(suite, tmp_path, selection=Selection(batches=(2,)))
    assert one.folder == first.folder
    progress = QuietProgress()
    rest = run(suite, tmp_path, progress)
    assert rest.folder == first.folder
    assert progress.begun == (3, 1)
    assert progress.cells == ["256x128/g128/M1", "256x128/g128/M3"]
    assert len((rest.folder / "records.jsonl").read_text().splitlines()) == 6


def test_energy_is_measured_in_the_cells_the_suite_names_and_nowhere_else(tmp_path):
    suite = simulated_suite(["sim_fp16", "sim_int4"], extra='energy: {cells: ["*/M4"], seconds: 0.5}')
    records = read_run(run(suite, tmp_path).folder).records
    assert {(record.M, record.energy is not None) for record in records} == {(1, False), (4, True)}


def test_another_suite_text_is_another_run_even_within_a_second(tmp_path):
    first = run(simulated_suite(["sim_fp16"]), tmp_path, budget_s=0.0)
    second = run(simulated_suite(["sim_fp16", "sim_int4"]), tmp_path, budget_s=0.0)
    assert first.folder != second.folder
    assert len(find_runs(tmp_path)) == 2


def test_two_devices_share_the_cells(tmp_path):
    suite = simulated_suite(["sim_fp16", "sim_int4"], M=[1, 2, 3, 4, 5, 6])
    outcome = run(suite, tmp_path, devices="0,1")
    assert outcome.cells_done == 6
    assert set(statuses(outcome.folder).values()) == {Status.OK}
    by_cell = {}
    for record in read_run(outcome.folder).records:
        by_cell.setdefault(record.cell, []).append(record)
    for records in by_cell.values():  # a ratio never crosses devices: the blocks of a cell interleave
        starts = sorted((block.started_s, record.backend) for record in records for block in record.blocks)
        assert {backend for _, backend in starts[:4]} == {"sim_fp16", "sim_int4"}


def test_devices_of_two_models_are_refused(tmp_path):
    mixed = InlineExecutor("Simulated GPU 1", "Simulated GPU 2")
    with pytest.raises(DeviceError, match="mixes Simulated GPU 1 and Simulated GPU 2"):
        run(simulated_suite(["sim_fp16"]), tmp_path, devices="0,1", executor=mixed)


def test_a_suite_for_another_device_says_what_it_wants_and_what_it_found(tmp_path):
    suite = simulated_suite(["sim_fp16"])
    suite = suite.model_copy(update={"device": suite.device.model_copy(update={"name": "A10"})})
    with pytest.raises(DeviceError, match="wants a CPU device named A10, this is Simulated GPU 1"):
        run(suite, tmp_path)


def test_the_second_run_on_a_folder_is_told_who_holds_it(tmp_path):
    suite = simulated_suite(["sim_fp16"], M=[1])
    first = run(suite, tmp_path, budget_s=0.0)
    lock = first.folder / "writer.lock"
    import socket

    lock.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    with pytest.raises(StoreError, match=f"being written by process {os.getpid()}"):
        run(suite, tmp_path)


def test_a_full_disk_stops_with_exit_7_and_keeps_what_was_written(tmp_path, monkeypatch):
    from marlin_bench.run_writer import DiskFullError, RunWriter

    whole = RunWriter.append
    written = []

    def append(self, record):
        if len(written) == 3:
            raise DiskFullError("cannot write records.jsonl (No space left on device): free space and run again")
        written.append(record)
        whole(self, record)

    monkeypatch.setattr(RunWriter, "append", append)
    progress = QuietProgress()
    outcome = run(simulated_suite(["sim_fp16", "sim_int4"], M=[1, 2, 3]), tmp_path, progress)
    assert outcome.exit_code is ExitCode.PARTLY_FAILED
    assert len(read_run(outcome.folder).records) == 3
    assert any("No space left" in note for note in progress.notes)


def test_verify_times_nothing_and_stores_nothing(tmp_path):
    suite = simulated_suite(["sim_fp16", "gives_zeros"], M=[1])
    found = list(verify_suite(suite, selection=Selection(), devices=None, executor=InlineExecutor()))
    assert {(one.backend, one.check is not None) for one in found} == {("sim_fp16", True), ("gives_zeros", False)}


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from simulated_suite import QuietProgress, simulated_executor, simulated_suite
from marlin_bench.plan import Selection
from marlin_bench.run import run_suite

progress = QuietProgress()
progress.on_phase = lambda cell, backend, phase: print(cell.id, backend, phase, flush=True)
suite = simulated_suite(["sim_fp16", "sim_slow"], M=[1, 2, 3], min_blocks=60, max_blocks=60)
outcome = run_suite(suite, selection=Selection(), results=Path(sys.argv[1]), devices=None, budget_s=None,
                    progress=progress, executor=simulated_executor())
sys.exit(outcome.exit_code)
"""


def start_sweep(results):
    script = SCRIPT.format(tests=str(TESTS), root=str(TESTS.parent))
    return subprocess.Popen(
        [sys.executable, "-c", script, str(results)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_timing(process, cell):
    turns = 0
    for line in process.stdout:
        turns += line.startswith(cell) and line.rstrip().endswith("timing")
        if turns >= 6:
            return
    raise AssertionError("the sweep ended before it timed anything")


def workers_of(parent):
    """Its workers alone: tests beside this one have theirs."""
    command = ["pgrep", "-P", str(parent), "-f", "simulated_worker.py"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return {int(number) for number in found.stdout.split()}


def is_alive(process):
    state = Path(f"/proc/{process}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c_once_finishes_the_block_saves_and_exits_130(tmp_path):
    process = start_sweep(tmp_path)
    wait_for_timing(process, "256x128/g128/M2")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == ExitCode.INTERRUPTED
    (folder,) = find_runs(tmp_path)
    cells = {record.cell for record in read_run(folder).records}
    assert cells == {"256x128/g128/M1", "256x128/g128/M2"}
    assert not (folder / "writer.lock").exists()


def test_kill_9_of_the_parent_loses_nothing_and_ends_the_worker(tmp_path):
    process = start_sweep(tmp_path)
    wait_for_timing(process, "256x128/g128/M2")
    workers = workers_of(process.pid)
    assert workers
    process.kill()
    process.wait()
    (folder,) = find_runs(tmp_path)
    killed = read_run(folder)
    assert {record.cell for record in killed.records} == {"256x128/g128/M1"}
    assert killed.meta.wall_s > killed.meta.timed_s > 0
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))
    again = start_sweep(tmp_path)
    text = again.communicate(timeout=120)[0]
    assert again.returncode == ExitCode.DONE
    assert "256x128/g128/M1 " not in text
    assert len(find_runs(tmp_path)) == 1
    done = read_run(folder).meta
    assert done.wall_s > killed.meta.wall_s
    assert done.timed_s > killed.meta.timed_s


def test_kill_9_of_the_worker_is_a_crash_of_the_backend_in_turn(tmp_path):
    suite = simulated_suite(["sim_fp16", "sim_slow"], M=[1], min_blocks=60, max_blocks=60)
    progress = QuietProgress()
    killed = []

    def kill_once(cell, backend, phase):
        if backend == "sim_slow" and phase == "timing" and not killed:
            killed.extend(workers_of(os.getpid()))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    progress.on_phase = kill_once
    outcome = run(suite, tmp_path, progress, executor=simulated_executor())
    found = statuses(outcome.folder)
    assert found["256x128/g128/M1", "sim_slow"] is Status.CRASHED
    assert found["256x128/g128/M1", "sim_fp16"] is Status.OK
