"""Bad neighbours: whatever a backend does to its process, the others are measured as if it were not there."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from simulated import Simulated, TimedLaunch
from simulated_suite import QuietProgress, simulated_suite

from marlin_bench.backends import register
from marlin_bench.executor import LocalExecutor
from marlin_bench.exit_codes import ExitCode
from marlin_bench.plan import Selection
from marlin_bench.problem import FP16
from marlin_bench.record import Flag, Status
from marlin_bench.run import run_suite
from marlin_bench.store import read_run

HEAP_BYTES = 1 << 30
"""What the device of these tests holds; `Hoards` leaves most of it behind."""
LEDGER = "MARLIN_BENCH_TEST_LEDGER"
"""A folder with a file for each process that holds memory of the device: like a GPU's, all processes share it."""
_packed = {}
"""Weights by backend, as `Neighbour` and `BaseFp16` packed them in this process: what is written over."""


def _hold(bytes_):
    """This process keeps `bytes_` more until it ends."""
    held = Path(os.environ[LEDGER]) / str(os.getpid())
    held.write_text(str(bytes_ + (int(held.read_text()) if held.exists() else 0)))


def _ask_for(bytes_):
    """OutOfMemoryError where the living processes leave less than `bytes_`."""
    holders = [file for file in Path(os.environ[LEDGER]).iterdir() if Path("/proc", file.name).exists()]
    if sum(int(file.read_text()) for file in holders) + bytes_ > HEAP_BYTES:
        raise torch.OutOfMemoryError("out of memory: half of the device was asked for")


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    """An empty device."""
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))
    (tmp_path / "ledger").mkdir()


class Bad(Simulated):
    """Goes bad at its eighth launch."""

    def go_bad(self):
        raise NotImplementedError

    def launch(self, packed, activations, output, choice):
        state = {"launches": 0}

        def work():
            state["launches"] += 1
            if state["launches"] == 8:
                self.go_bad()
            output.copy_(self.product(packed, activations))

        return TimedLaunch(self.seconds(activations, output, packed), work)


def own(bad):
    """The same in a process of its own."""
    return register(type(f"Own{bad.__name__}", (bad,), {"name": f"own_{bad.name}", "isolation": "own"}))


@register
class CorruptsMemory(Bad):
    """Writes through a wild pointer."""

    name = "corrupts_memory"

    def go_bad(self):
        import ctypes

        ctypes.memset(8, 0xFF, 64)


@register
class Hangs(Bad):
    name = "hangs"

    def go_bad(self):
        time.sleep(3600)


@register
class Exits(Bad):
    name = "exits"

    def go_bad(self):
        os._exit(0)


@register
class KillsItself(Bad):
    name = "kills_itself"

    def go_bad(self):
        os.kill(os.getpid(), signal.SIGKILL)


@register
class SetsFlags(Bad):
    name = "sets_flags"

    def go_bad(self):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 3)
        torch.set_grad_enabled(False)


@register
class TellsFlags(Simulated):
    """Tells in the record what it finds set."""

    name = "tells_flags"

    def tune(self, packed, activations, outputs, effort):
        found = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
        return {"found": " ".join(map(str, found))}


@register
class Hoards(Simulated):
    """Right, and leaves nine tenths of the device's memory behind."""

    name = "hoards"

    def launch(self, packed, activations, output, choice):
        _hold(int(0.9 * HEAP_BYTES))
        return super().launch(packed, activations, output, choice)


@register
class Needs(Simulated):
    """Needs half of the device's memory while it runs."""

    name = "needs"

    def pack(self, weights):
        _ask_for(HEAP_BYTES // 2)
        return super().pack(weights)


@register
class NeedsLater(Bad):
    """Asks for memory in the middle of its work, half of what the device holds."""

    name = "needs_later"

    def go_bad(self):
        _ask_for(HEAP_BYTES // 2)


@register
class Greedy(Simulated):
    """Needs more than there is."""

    name = "greedy"

    def pack(self, weights):
        raise torch.OutOfMemoryError("out of memory: twice the device was asked for")


class Remembered(Simulated):
    """Right as long as nobody writes over its weights."""

    def pack(self, weights):
        packed = super().pack(weights)
        _packed.setdefault(self.name, []).append(packed.tensors["weights"])
        return packed


@register
class Neighbour(Remembered):
    name = "neighbour"


@register
class BaseFp16(Remembered):
    name = "base_fp16"
    is_baseline = True

    def format(self, problem):
        return FP16


class Scribbles(Bad):
    """Writes over a neighbour's weights: no crash, and its own answers are right."""

    victim = ""

    def go_bad(self):
        for tensor in _packed.get(self.victim, []):
            tensor.zero_()


@register
class ScribblesOverNeighbour(Scribbles):
    name = "scribbles_over_neighbour"
    victim = "neighbour"


@register
class ScribblesOverBaseline(Scribbles):
    name = "scribbles_over_baseline"
    victim = "base_fp16"


@register
class WrongBaseline(Simulated):
    """A baseline that needs nobody to be wrong."""

    name = "wrong_baseline"
    is_baseline = True

    def format(self, problem):
        return FP16

    def product(self, packed, activations):
        return super().product(packed, activations) * 0.9


@register
class LeavesWorkBehind(Simulated):
    """Starts threads that go on after its turn, as a library with streams of its own does."""

    name = "leaves_work_behind"

    def launch(self, packed, activations, output, choice):
        import threading

        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        return super().launch(packed, activations, output, choice)


@register
class CountsProcesses(Simulated):
    """Tells its process in the record, to see who shares one."""

    isolation = "own"
    name = "counts_processes"

    def tune(self, packed, activations, outputs, effort):
        return {"process": str(os.getpid())}


OWN = {bad.name: own(bad) for bad in (CorruptsMemory, Hangs, Exits, KillsItself, SetsFlags, Hoards, Needs)}
WORKER = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
import test_isolation, runpy
runpy.run_path({str(Path(__file__).parent / "simulated_worker.py")!r}, run_name="__main__")
"""


class Counting(LocalExecutor):
    """Counts the workers that are started."""

    def __init__(self):
        super().__init__([sys.executable, "-c", WORKER])
        self.opened = 0

    def open(self, device):
        self.opened += 1
        return super().open(device)


def run(backends, results, M=(1,), timeout=60.0, executor=None):
    suite = simulated_suite(backends, M=M, timeout=timeout)
    outcome = run_suite(
        suite, selection=Selection(), results=results, devices=None, budget_s=None,
        progress=QuietProgress(), executor=executor or Counting(),
    )  # fmt: skip
    return outcome, read_run(outcome.folder).records


def by_backend(records):
    """The last word on each backend; baselines measured again beside an isolated one left out."""
    return {record.backend: record for record in records if not (record.isolated and record.baseline)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The times of the good ones with no bad one near them."""
    _, records = run(["sim_fp16", "sim_int4"], tmp_path_factory.mktemp("alone"))
    return {name: record.times[0] for name, record in by_backend(records).items()}


@pytest.mark.parametrize("isolation", ["shared", "own"])
@pytest.mark.parametrize(
    ("bad", "status", "reason"),
    [
        ("corrupts_memory", Status.CRASHED, "signal 11"),
        ("hangs", Status.TIMEOUT, "no answer within 3 s"),
        ("exits", Status.CRASHED, "exit code 0"),
        ("kills_itself", Status.CRASHED, "signal 9"),
    ],
)
def test_who_takes_its_process_down_costs_itself_alone(bad, status, reason, isolation, tmp_path, alone):
    name = bad if isolation == "shared" else f"own_{bad}"
    outcome, records = run(["sim_fp16", name, "sim_int4"], tmp_path, timeout=3.0)
    found = by_backend(records)
    assert found[name].status is status
    assert reason in found[name].reason
    assert found[name].isolated is (isolation == "own")
    for good in ("sim_fp16", "sim_int4"):
        assert found[good].status is Status.OK
        assert found[good].times[0] == pytest.approx(alone[good])
        assert len(found[good].blocks) >= 6
    assert outcome.cells_done == outcome.cells_total == 1


def test_flags_are_put_back_and_the_record_says_who_set_them(tmp_path, alone):
    _, records = run(["sim_fp16", "tells_flags", "sets_flags", "own_sets_flags", "sim_int4"], tmp_path, M=(1, 2))
    found = by_backend(records)
    told = [record.choice["found"] for record in records if record.backend == "tells_flags"]
    assert told[0] == told[1]  # before and after the other had its turns
    assert told[0].startswith("torch.float32")
    assert Flag.CHANGED_SETTINGS in found["sets_flags"].flags
    assert Flag.CHANGED_SETTINGS in found["own_sets_flags"].flags
    assert found["sim_fp16"].flags == found["sim_int4"].flags == []
    first = next(record for record in records if record.backend == "sim_int4")
    assert first.times[0] == pytest.approx(alone["sim_int4"])


def test_gigabytes_that_a_neighbour_leaked_cost_nobody_a_cell(tmp_path):
    outcome, records = run(["sim_fp16", "hoards", "needs"], tmp_path, M=[1, 2])
    assert {record.status for record in records} == {Status.OK}
    assert outcome.cells_done == 2
    first = next(record for record in records if record.backend == "needs")
    assert first.isolated  # measured again in a fresh process, with the baseline beside it
    assert [record.baseline for record in records if record.cell == first.cell] == [True, False]


def test_memory_that_runs_out_in_the_middle_of_the_work_costs_nobody_a_cell(tmp_path):
    _, records = run(["sim_fp16", "hoards", "needs_later", "sim_int4"], tmp_path)
    found = by_backend(records)
    assert {record.status for record in records} == {Status.OK}
    assert found["needs_later"].isolated
    assert not found["sim_int4"].isolated
    assert [record.backend for record in records].count("needs_later") == 1


def test_weights_that_a_neighbour_wrote_over_cost_their_owner_nothing(tmp_path):
    outcome, records = run(["sim_fp16", "scribbles_over_neighbour", "neighbour", "sim_int4"], tmp_path, M=[1, 2])
    assert {record.status for record in records} == {Status.OK}
    assert outcome.exit_code is ExitCode.DONE
    again = [record for record in records if record.backend == "neighbour"]
    assert [record.isolated for record in again] == [True, True]  # in a fresh process, paired with the baseline there
    for record in again:
        assert [one.backend for one in records if one.cell == record.cell] == ["sim_fp16", "neighbour"]
    assert not any(record.isolated for record in records if record.backend == "sim_int4")


def test_who_writes_over_the_baseline_is_found_and_costs_itself_alone(tmp_path, alone):
    executor = Counting()
    backends = ["base_fp16", "scribbles_over_baseline", "neighbour", "sim_int4"]
    _, records = run(backends, tmp_path, M=[1, 2], executor=executor)
    culprit = [record for record in records if record.backend == "scribbles_over_baseline"]
    assert [record.status for record in culprit] == [Status.WRONG, Status.WRONG]
    assert culprit[0].reason.startswith("it spoils what runs beside it: base_fp16 is wrong there (")
    assert all(record.blocks == [] for record in culprit)
    for name in ("neighbour", "sim_int4"):
        found = [record for record in records if record.backend == name]
        assert [record.status for record in found] == [Status.OK, Status.OK]
        assert found[0].times[0] == pytest.approx(alone["sim_int4"])
        assert [record.isolated for record in found] == [True, False]  # from the second cell on the culprit is apart
        for record in found:
            baselines = [one for one in records if one.cell == record.cell and one.baseline]
            assert [one.status for one in baselines] == [Status.OK]
    # the shared one, the baseline by itself, each of the three, the shared one once more, the culprit's
    assert executor.opened == 7


def test_a_baseline_that_is_wrong_by_itself_is_told_so_once(tmp_path):
    executor = Counting()
    _, records = run(["wrong_baseline", "sim_int4"], tmp_path, M=[1, 2], executor=executor)
    assert [(record.backend, record.status, record.isolated) for record in records] == [
        ("wrong_baseline", Status.WRONG, False), ("sim_int4", Status.OK, False),
        ("wrong_baseline", Status.WRONG, False), ("sim_int4", Status.OK, False),
    ]  # fmt: skip
    assert executor.opened == 2


def test_who_is_wrong_with_nobody_beside_gets_no_third_chance(tmp_path):
    executor = Counting()
    _, records = run(["sim_fp16", "gives_zeros", "sim_int4"], tmp_path, M=[1, 2, 4], executor=executor)
    liars = [record for record in records if record.backend == "gives_zeros"]
    assert [(record.status, record.isolated) for record in liars] == [
        (Status.WRONG, True), (Status.WRONG, False), (Status.WRONG, False),
    ]  # fmt: skip
    assert executor.opened == 2


def test_who_leaks_in_a_process_of_its_own_starves_nobody(tmp_path):
    executor = Counting()
    _, records = run(["sim_fp16", "own_hoards", "needs"], tmp_path, M=[1, 2], executor=executor)
    assert {record.status for record in records} == {Status.OK}
    assert not any(record.isolated for record in records if record.backend == "needs")
    assert executor.opened == 2


def test_memory_that_the_shared_process_holds_costs_a_process_of_its_own_nothing(tmp_path):
    _, records = run(["sim_fp16", "hoards", "own_needs", "sim_int4"], tmp_path, M=[1, 2])
    assert {record.status for record in records} == {Status.OK}
    for M in (1, 2):
        pair = [record for record in records if record.cell == f"256x128/g128/M{M}+own_needs"]
        assert {record.backend for record in pair} == {"sim_fp16", "own_needs"}


def test_who_needs_more_than_there_is_says_so_after_one_more_try(tmp_path):
    executor = Counting()
    _, records = run(["sim_fp16", "greedy", "sim_int4"], tmp_path, executor=executor)
    found = by_backend(records)
    assert found["greedy"].status is Status.OUT_OF_MEMORY
    assert "twice the device" in found["greedy"].reason
    assert found["sim_int4"].status is Status.OK
    assert executor.opened == 2
    assert [record.backend for record in records].count("greedy") == 1


def test_work_left_behind_does_not_keep_the_run_from_ending(tmp_path, alone):
    _, records = run(["sim_fp16", "leaves_work_behind", "sim_int4"], tmp_path)
    found = by_backend(records)
    assert {record.status for record in records} == {Status.OK}
    assert found["sim_int4"].times[0] == pytest.approx(alone["sim_int4"])


def test_a_process_of_its_own_lives_over_all_cells_and_is_nobody_else_s(tmp_path):
    executor = Counting()
    _, records = run(["sim_fp16", "counts_processes", "sim_int4"], tmp_path, M=[1, 2, 4], executor=executor)
    processes = {record.choice["process"] for record in records if record.backend == "counts_processes"}
    assert len(processes) == 1
    assert executor.opened == 2
    cells = {record.cell for record in records if record.backend == "counts_processes"}
    assert cells == {f"256x128/g128/M{M}+counts_processes" for M in (1, 2, 4)}
