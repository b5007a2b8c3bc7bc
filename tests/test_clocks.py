"""Clocks are locked as asked, and given back exactly once however a run ends; nothing is ever set under `observe`."""

import json
import os
import signal

import pytest
from nvml_stand_in import StandIn, build, wait_until

from marlin_bench.clocks import nearest

TDP = 0xFFFFFF01


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(library, tmp_path):
    return StandIn(library, tmp_path)


def assert_given_back_once(machine):
    wait_until(lambda: not machine.journals, "the removal of the journal")
    assert machine.succeeded("SetGpuLockedClocks") == 1
    assert machine.succeeded("ResetGpuLockedClocks") == 1
    assert machine.is_free


# -- every ending ------------------------------------------------------------------------------------------------------


def test_a_normal_end_gives_the_clocks_back_once(machine):
    holding = machine.hold()
    assert holding.state["locked"]
    assert machine.numbers()["0.sm_lock"] == TDP
    holding.end()
    assert holding.process.returncode == 0
    assert_given_back_once(machine)


def test_an_exception_gives_the_clocks_back_once(machine):
    holding = machine.hold(body="raise")
    assert "the body failed" in holding.end()
    assert holding.process.returncode == 1
    assert_given_back_once(machine)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL])
def test_a_signal_to_the_process_group_gives_the_clocks_back_once(machine, number):
    holding = machine.hold()
    holding.signal_group(number)
    assert holding.process.returncode != 0
    assert_given_back_once(machine)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_the_guardian_is_deaf_to_signals_meant_for_its_parent(machine, number):
    holding = machine.hold()
    guardian = holding.guardian
    os.kill(guardian, number)
    holding.end()
    assert {call[0] for call in machine.calls("ResetGpuLockedClocks")} == {str(guardian)}
    assert_given_back_once(machine)


def test_a_second_ctrl_c_while_giving_back_changes_nothing(machine):
    holding = machine.hold()
    os.killpg(holding.process.pid, signal.SIGINT)
    os.killpg(holding.process.pid, signal.SIGINT)
    holding.process.communicate(timeout=20)
    assert_given_back_once(machine)


def test_a_crashing_worker_leaves_the_lock_until_the_run_ends(machine):
    holding = machine.hold(body="worker_crash")
    assert machine.numbers()["0.sm_lock"] == TDP
    holding.end()
    assert holding.process.returncode == 0
    assert_given_back_once(machine)


def test_a_parent_killed_with_kill_9_gets_its_clocks_back_from_the_guardian(machine):
    holding = machine.hold()
    holding.process.kill()
    holding.process.wait()
    assert_given_back_once(machine)


def test_an_abrupt_exit_without_cleaning_up_gives_the_clocks_back_once(machine):
    holding = machine.hold(body="exit")
    assert holding.process.wait(timeout=20) == 3
    assert_given_back_once(machine)


def test_a_forked_heir_of_the_pipe_does_not_keep_the_lock_alive(machine):
    holding = machine.hold(body="fork")
    assert holding.process.stdout.readline() == "forked\n"
    holding.process.kill()
    holding.process.wait()
    try:
        assert_given_back_once(machine)
    finally:
        os.killpg(holding.process.pid, signal.SIGKILL)  # the heir


def test_a_run_whose_guardian_was_killed_gives_the_clocks_back_itself(machine):
    holding = machine.hold()
    os.kill(holding.guardian, signal.SIGKILL)
    holding.end()
    assert holding.process.returncode == 0
    assert_given_back_once(machine)


def cut_the_power(machine):
    """Run and guardian die at once; the lock and the journal stay."""
    holding = machine.hold(run="the cut run")
    guardian = holding.guardian
    os.kill(guardian, signal.SIGKILL)
    holding.process.kill()
    holding.process.wait()
    assert machine.numbers()["0.sm_lock"] == TDP
    assert len(machine.journals) == 1
    return holding


def test_after_a_power_cut_the_next_run_resets_first_and_says_whose_lock_it_was(machine):
    dead = cut_the_power(machine)
    holding = machine.hold(sm_mhz=1200)
    assert holding.state["locked"]
    assert f"process {dead.process.pid}" in holding.state["warning"]
    assert "the cut run" in holding.state["warning"]
    order = [call[1] for call in machine.calls("LockedClocks")]
    assert order == ["nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks", "nvmlDeviceSetGpuLockedClocks"]
    holding.end()
    assert machine.succeeded("ResetGpuLockedClocks") == 2
    assert machine.is_free
    assert not machine.journals


def test_after_a_power_cut_observing_only_tells_and_sets_nothing(machine):
    cut_the_power(machine)
    before = len(machine.calls("LockedClocks"))
    holding = machine.hold("observe")
    assert not holding.state["locked"]
    assert "clocks reset" in holding.state["warning"]
    holding.end()
    assert len(machine.calls("LockedClocks")) == before
    assert len(machine.journals) == 1


def clocks_command(machine, *arguments):
    """`marlin-bench clocks …` by itself."""
    program = "import sys; from marlin_bench.cli.clocks import app; app(sys.argv[1:])"
    return machine.python("-c", program, *arguments)


def test_clocks_reset_gives_back_once_what_a_dead_run_left(machine):
    cut_the_power(machine)
    done = clocks_command(machine, "reset")
    assert done.returncode == 0
    assert "the clocks are given back" in done.stdout
    assert_given_back_once(machine)
    again = clocks_command(machine, "reset")
    assert "left nothing locked" in again.stdout
    assert machine.succeeded("ResetGpuLockedClocks") == 1


def test_doctor_finds_the_lock_of_a_dead_run(machine):
    cut_the_power(machine)
    program = (
        "import json\nfrom dataclasses import asdict\nfrom marlin_bench.clock_findings import clock_findings\n"
        "print(json.dumps({found.name: asdict(found) for found in clock_findings('GPU-0')}))"
    )
    found = json.loads(machine.python("-c", program).stdout)
    assert found["clock lock"]["state"] == "warn"
    assert found["clock lock"]["remedy"] == "marlin-bench clocks reset"
    assert found["foreign clock lock"]["state"] == "ok"
    assert "110 steps" in found["supported clocks"]["found"]


def test_a_journal_from_before_a_restart_is_removed_without_touching_the_clocks(machine):
    cut_the_power(machine)
    journal = json.loads(machine.journals[0].read_text())
    machine.journals[0].write_text(json.dumps({**journal, "boot_id": "another start"}))
    machine.set(sm_lock=0)
    assert "the journal is removed" in clocks_command(machine, "reset").stdout
    assert not machine.journals
    assert not machine.calls("Reset")


# -- failures on the way -----------------------------------------------------------------------------------------------


def test_a_memory_clock_that_cannot_be_locked_gives_the_sm_clock_back(machine):
    machine.set(error_nvmlDeviceSetMemoryLockedClocks=3)
    holding = machine.hold(memory_mhz=3201)
    assert not holding.state["locked"]
    assert "SetMemoryLockedClocks" in holding.state["warning"]
    holding.end()
    assert_given_back_once(machine)


def test_memory_and_sm_clocks_are_both_given_back(machine):
    holding = machine.hold(sm_mhz=1200, memory_mhz=3201)
    assert holding.state["memory_hz"] == 3201e6
    assert machine.numbers()["0.memory_lock"] == 3201
    holding.end()
    assert_given_back_once(machine)
    assert machine.succeeded("ResetMemoryLockedClocks") == 1


def test_the_memory_clock_is_never_touched_unless_asked_for(machine):
    machine.hold().end()
    assert not machine.calls("MemoryLockedClocks")


def test_a_reset_that_fails_at_first_is_tried_again(machine):
    holding = machine.hold()
    machine.set(error_nvmlDeviceResetGpuLockedClocks=999)
    guardian = holding.guardian
    holding.process.stdin.close()
    wait_until(lambda: machine.calls("ResetGpuLockedClocks"), "a failed reset")
    machine.set(error_nvmlDeviceResetGpuLockedClocks=0)
    holding.process.wait(timeout=20)
    assert holding.process.returncode == 0
    assert [call[0] for call in machine.calls("ResetGpuLockedClocks") if call[-1] == "0"] == [str(guardian)]
    assert_given_back_once(machine)


def test_a_reset_that_never_works_is_an_error_and_leaves_the_journal(machine):
    holding = machine.hold()
    machine.set(error_nvmlDeviceResetGpuLockedClocks=15)
    output, _ = holding.process.communicate("\n", timeout=20)
    assert holding.process.returncode == 6
    assert "still locked" in output
    assert "clocks reset" in output
    assert len(machine.journals) == 1
    machine.set(error_nvmlDeviceResetGpuLockedClocks=0)
    assert clocks_command(machine, "reset").returncode == 0
    assert_given_back_once(machine)


# -- rights, other holders, what is chosen ----------------------------------------------------------------------------


def test_nothing_is_ever_set_under_observe(machine):
    holding = machine.hold("observe")
    assert holding.state == {
        "locked": False,
        "sm_hz": None,
        "memory_hz": None,
        "warning": None,
        "profile": "burst",
    }
    holding.end()
    assert machine.calls("Get")
    assert not machine.calls("Set", "Reset")
    assert not machine.journals


def test_without_rights_lock_goes_on_unlocked_with_one_warning(machine):
    machine.set(error_nvmlDeviceSetGpuLockedClocks=4)
    holding = machine.hold("lock")
    assert not holding.state["locked"]
    assert "CAP_SYS_ADMIN" in holding.state["warning"]
    holding.end()
    assert holding.process.returncode == 0
    assert not machine.calls("Reset")
    assert not machine.journals


def test_without_rights_require_ends_with_6_and_names_right_and_command(machine):
    machine.set(error_nvmlDeviceSetGpuLockedClocks=4)
    holding = machine.hold("require", sm_mhz=1200)
    holding.end()
    assert holding.process.returncode == 6
    assert "CAP_SYS_ADMIN" in holding.said
    assert "sudo nvidia-smi -i GPU-0 -lgc 1200,1200" in holding.said


@pytest.mark.parametrize(
    "numbers, word", [({"mig": 1}, "MIG"), ({"error_nvmlDeviceSetGpuLockedClocks": 3}, "Not Supported")]
)
def test_a_gpu_that_cannot_be_locked_is_observed_or_refused(machine, numbers, word):
    machine.set(**numbers)
    lock = machine.hold("lock")
    assert word in lock.state["warning"]
    lock.end()
    require = machine.hold("require")
    require.end()
    assert require.process.returncode == 6
    assert word in require.said
    assert machine.is_free


def test_a_machine_without_nvml_observes_with_a_warning(machine, tmp_path):
    holding = StandIn(tmp_path / "nowhere", tmp_path).hold("observe")
    assert "cannot be watched" in holding.state["warning"]
    holding.end()
    assert holding.process.returncode == 0


def test_a_lock_of_somebody_else_is_refused_and_not_reset(machine):
    machine.set(foreign_bit=1)
    holding = machine.hold("lock")
    assert not holding.state["locked"]
    assert "somebody else" in holding.state["warning"]
    holding.end()
    require = machine.hold("require")
    require.end()
    assert require.process.returncode == 6
    assert not machine.calls("Set", "Reset")


def test_application_clocks_below_the_highest_are_not_taken_for_a_foreign_lock(machine):
    machine.set(foreign_bit=1, application_sm=1500)
    holding = machine.hold("lock")
    assert holding.state["locked"]
    holding.end()


def test_a_clock_that_stays_low_under_load_without_a_reason_is_somebody_elses(machine):
    machine.set(foreign_mhz=900)
    holding = machine.hold("lock", measure=True)
    assert "somebody else holds it" in holding.state["warning"]
    holding.end()
    assert not machine.calls("Set", "Reset")


@pytest.mark.parametrize("runs_at, asked", [(1900, 1200), (1800, 1950)])
def test_a_clock_that_the_lock_does_not_move_is_refused_and_given_back(machine, runs_at, asked):
    machine.set(foreign_mhz=runs_at)
    holding = machine.hold("require", sm_mhz=asked, measure=True)
    holding.end()
    assert holding.process.returncode == 6
    assert f"was locked at {asked} MHz and runs at {runs_at} MHz" in holding.said
    assert_given_back_once(machine)


def test_a_lock_that_the_power_limit_pulls_down_is_reported_with_both_clocks(machine):
    machine.set(power_cap_mhz=1400, reasons=0x4)
    holding = machine.hold("lock", sm_mhz=1800, measure=True)
    assert holding.state["locked"]
    assert holding.state["sm_hz"] == 1400e6
    assert "locked at 1800 MHz but runs at 1400 MHz" in holding.state["warning"]
    assert "sw_power_cap" in holding.state["warning"]
    holding.end()
    assert_given_back_once(machine)


def test_two_runs_at_once_the_second_says_who_holds_the_lock(machine):
    first = machine.hold(run="first run")
    second = machine.hold("lock")
    assert not second.state["locked"]
    for part in (f"are held by process {first.process.pid}", "first run", "since 20"):
        assert part in second.state["warning"]
    second.end()
    third = machine.hold("require")
    third.end()
    assert third.process.returncode == 6
    assert machine.numbers()["0.sm_lock"] == TDP
    refused = clocks_command(machine, "reset")
    assert refused.returncode != 0
    assert machine.numbers()["0.sm_lock"] == TDP
    first.end()
    assert_given_back_once(machine)


def test_the_base_clock_is_asked_for_by_its_symbol_and_measured(machine):
    machine.set(base_sm=1095)
    holding = machine.hold(measure=True)
    assert [call[3:5] for call in machine.calls("SetGpuLockedClocks")] == [[str(TDP), str(TDP)]]
    assert holding.state["sm_hz"] == 1095e6
    assert holding.state["profile"] == "sustained"
    holding.end()


def test_max_locks_the_highest_supported_clock_and_is_a_burst_profile(machine):
    holding = machine.hold(sm_mhz="max")
    assert machine.numbers()["0.sm_lock"] == 1980
    assert holding.state["profile"] == "burst"
    holding.end()


def test_the_nearest_supported_clock_is_locked_and_named(machine):
    holding = machine.hold(sm_mhz=1000)
    assert machine.numbers()["0.sm_lock"] == 1005
    assert holding.state["sm_hz"] == 1005e6
    assert "1000 MHz is not supported" in holding.state["warning"]
    holding.end()


def test_a_missing_persistence_mode_is_warned_about(machine):
    machine.set(persistence=0)
    holding = machine.hold()
    assert "persistence mode is off" in holding.state["warning"]
    holding.end()


def test_the_gpu_is_found_by_its_uuid_not_by_its_number(machine):
    machine.set(devices=2)
    holding = machine.hold(uuid="GPU-1")
    assert [call[2] for call in machine.calls("SetGpuLockedClocks")] == ["1"]
    holding.end()
    assert {call[2] for call in machine.calls("ResetGpuLockedClocks")} == {"1"}


def test_clocks_status_reads_and_sets_nothing(machine):
    done = clocks_command(machine, "status", "--json")
    assert done.returncode == 0
    names = {found["name"] for found in json.loads(done.stdout)["GPU-0"]}
    assert {"clocks", "supported clocks", "clock rights", "clock lock", "foreign clock lock"} <= names
    assert not machine.calls("Set", "Reset")


@pytest.mark.parametrize("asked, given", [(885, 885), (886, 885), (892, 885), (893, 900), (10, 300), (9999, 1980)])
def test_nearest_prefers_the_lower_of_two_clocks_as_close(asked, given):
    assert nearest(asked, [1980, 900, 885, 300]) == given


def test_nearest_keeps_the_number_where_no_clocks_are_listed():
    assert nearest(885, []) == 885
