"""Samples beside a block become its telemetry; a sick GPU costs samples, never the run."""

import json
import time

import numpy as np
import pytest
from nvml_stand_in import StandIn, build

from marlin_bench.clock_probe import clock_hertz
from marlin_bench.energy import counter_power, measure_energy
from marlin_bench.nvml import Counters, Instant
from marlin_bench.record import Flag, Telemetry
from marlin_bench.telemetry import Trace, flags, must_repeat, summarize


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(library, tmp_path):
    return StandIn(library, tmp_path)


def trace(*readings):
    made = Trace()
    for moment, reading in readings:
        made.add(moment, reading)
    return made


def steady_instants(until=10.0, period=0.04, **fields):
    fields = {"sm_clock_hz": 1980e6, "power_w": 300.0, "temperature_c": 50.0} | fields
    return trace(*((moment, Instant(**fields)) for moment in np.arange(0.0, until, period)))


# -- windows over scripted samples ------------------------------------------------------------------------------------


def test_a_short_block_takes_clock_and_temperature_from_the_samples_around_it_and_no_power():
    told = summarize(steady_instants(), Trace(), 1.005, 1.010)
    assert told.sm_clock_hz == 1980e6
    assert told.temperature_c == 50.0
    assert told.power_w is None
    assert told.energy_j is None


def test_power_is_told_from_100_ms_on_and_only_from_samples_inside():
    instants = trace(
        *((moment, Instant(power_w=700.0 if 1.0 <= moment <= 1.2 else 100.0)) for moment in np.arange(0, 3, 0.04))
    )
    assert summarize(instants, Trace(), 1.0, 1.0999).power_w is None
    assert summarize(instants, Trace(), 1.0, 1.2).power_w == 700.0


def test_energy_needs_a_second_and_is_the_rise_of_the_counter():
    counters = trace(*((moment, Counters(energy_j=1000 + 250 * moment)) for moment in np.arange(0.0, 5.0, 0.1)))
    assert summarize(Trace(), counters, 1.0, 1.5).energy_j is None
    assert summarize(Trace(), counters, 1.03, 3.03).energy_j == pytest.approx(500.0)


def test_samples_that_are_stale_say_nothing():
    told = summarize(steady_instants(until=1.0), Trace(), 2.0, 2.005)
    assert told == Telemetry()


def test_the_clock_is_the_median_the_temperature_the_highest_the_margin_the_smallest():
    instants = trace(
        (1.0, Instant(sm_clock_hz=1e9, temperature_c=50.0)),
        (1.1, Instant(sm_clock_hz=2e9, temperature_c=70.0)),
        (1.2, Instant(sm_clock_hz=2e9, temperature_c=60.0)),
    )
    counters = trace((1.0, Counters(temperature_margin_c=30.0)), (1.2, Counters(temperature_margin_c=20.0)))
    told = summarize(instants, counters, 0.9, 1.3)
    assert (told.sm_clock_hz, told.temperature_c, told.temperature_margin_c) == (2e9, 70.0, 20.0)


def test_reasons_of_all_samples_in_the_window_count_and_idling_does_not():
    instants = trace(
        (1.0, Instant(reasons=("gpu_idle",))),
        (1.1, Instant(reasons=("sw_power_cap",))),
        (1.2, Instant(reasons=("hw_thermal", "sw_power_cap"))),
        (1.3, Instant(reasons=("sync_boost",))),
    )
    assert summarize(instants, Trace(), 0.95, 1.25).event_reasons == ["hw_thermal", "sw_power_cap"]


def throttle_counters(rate, until=2.0, name="sw_power_cap"):
    """The counter rises by `rate` seconds a second from 1 s on, read every 100 ms."""
    moments = np.arange(0.0, until, 0.1)
    return trace(*((moment, Counters(throttle_s={name: 50 + rate * max(0.0, moment - 1)})) for moment in moments))


def test_throttle_time_is_the_share_of_the_window_even_when_the_counter_steps_more_slowly_than_blocks():
    told = summarize(Trace(), throttle_counters(rate=0.5), 1.42, 1.43)
    assert told.throttle_s["sw_power_cap"] == pytest.approx(0.005)


def test_throttle_time_of_a_block_after_the_last_reading_goes_on_at_the_last_rate():
    told = summarize(Trace(), throttle_counters(rate=0.5, until=1.55), 1.56, 1.58)
    assert told.throttle_s["sw_power_cap"] == pytest.approx(0.01)


def test_a_counter_that_did_not_rise_is_not_told():
    assert summarize(Trace(), throttle_counters(rate=0.5), 0.2, 0.6).throttle_s == {}


def test_throttle_time_is_never_longer_than_the_window():
    assert summarize(Trace(), throttle_counters(rate=1.3), 1.5, 1.6).throttle_s["sw_power_cap"] == pytest.approx(0.1)


def test_a_long_trace_forgets_its_older_half():
    long = Trace(most=10)
    for moment in range(25):
        long.add(float(moment), moment)
    assert long.times == [float(reading) for reading in long.readings]
    assert long.readings == list(range(15, 25))


# -- what a block under a reason is worth -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason", ["hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake", "board_limit", "reliability"]
)
def test_a_block_that_the_hardware_slowed_down_is_repeated_and_flagged(reason):
    by_event = Telemetry(event_reasons=[reason])
    by_counter = Telemetry(throttle_s={reason: 0.001})
    for telemetry in (by_event, by_counter):
        assert must_repeat(telemetry)
        assert flags(telemetry) == [Flag.THROTTLED]


def test_a_power_capped_block_is_kept_and_flagged():
    for telemetry in (Telemetry(event_reasons=["sw_power_cap"]), Telemetry(throttle_s={"sw_power_cap": 0.002})):
        assert not must_repeat(telemetry)
        assert flags(telemetry) == [Flag.POWER_CAPPED]


@pytest.mark.parametrize("reason", ["clocks_setting", "sync_boost", "display_clock"])
def test_other_reasons_neither_repeat_nor_flag(reason):
    telemetry = Telemetry(event_reasons=[reason])
    assert not must_repeat(telemetry)
    assert flags(telemetry) == []


# -- the sidecar over the real pynvml ---------------------------------------------------------------------------------

WATCH = """
import json, sys, time
from marlin_bench.telemetry import Sidecar
with Sidecar("GPU-0") as sidecar:
    time.sleep(0.1)
    start = time.monotonic()
    time.sleep(float(sys.argv[1]))
    told = sidecar.window(start, time.monotonic())
    samples = len(sidecar.instants.within(start, start + float(sys.argv[1])))
print(json.dumps({"telemetry": told.model_dump(), "samples": samples}))
"""


def watch(machine, seconds=1.3):
    done = machine.python("-c", WATCH, str(seconds))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_sidecar_reads_every_sensor_and_sets_nothing(machine):
    machine.set(reasons=0x4, field74=500_000_000, celsius=61, margin=26, instant_mw=650_000, watts_mj=640_000)
    told = watch(machine)["telemetry"]
    assert told["sm_clock_hz"] == 1980e6
    assert told["memory_clock_hz"] == 3201e6
    assert told["power_w"] == pytest.approx(650.0)
    assert told["temperature_c"] == 61
    assert told["temperature_margin_c"] == 26
    assert told["event_reasons"] == ["sw_power_cap"]
    assert told["energy_j"] == pytest.approx(640 * 1.3, rel=0.25)
    assert told["throttle_s"]["sw_power_cap"] == pytest.approx(0.65, rel=0.3)
    assert machine.calls("FieldValues")
    assert not machine.calls("Set", "Reset")


def test_what_a_gpu_does_not_have_is_none(machine):
    machine.set(
        error_nvmlDeviceGetTemperature=3,
        error_nvmlDeviceGetMarginTemperature=3,
        error_nvmlDeviceGetTotalEnergyConsumption=3,
        error_nvmlDeviceGetFieldValues=3,
        error_nvmlDeviceGetPowerUsage=3,
        error_nvmlDeviceGetCurrentClocksEventReasons=3,
    )
    told = watch(machine)["telemetry"]
    expected = Telemetry(sm_clock_hz=1980e6, memory_clock_hz=3201e6)
    assert told == expected.model_dump()


def test_a_gpu_that_is_lost_in_the_middle_ends_the_samples_not_the_run(machine):
    machine.set(error_nvmlDeviceGetClockInfo=15, after_nvmlDeviceGetClockInfo=2)
    seen = watch(machine)
    assert seen["samples"] == 0
    assert seen["telemetry"] == Telemetry().model_dump()


def test_without_a_driver_the_sidecar_says_so_at_once(library, tmp_path):
    machine = StandIn(tmp_path / "nowhere", tmp_path)
    program = (
        "from marlin_bench.nvml import NvmlError\nfrom marlin_bench.telemetry import Sidecar\n"
        "try:\n    Sidecar('GPU-0')\nexcept NvmlError as error:\n    print('no:', error)"
    )
    assert machine.python("-c", program).stdout.startswith("no:")


def test_facts_are_in_si_units_and_empty_without_a_driver(machine, tmp_path):
    program = (
        "import json\nfrom dataclasses import asdict\nfrom marlin_bench.nvml import read_facts\n"
        "print(json.dumps(asdict(read_facts('GPU-0'))))"
    )
    facts = json.loads(machine.python("-c", program).stdout)
    assert facts["memory_bandwidth"] == pytest.approx(2 * 3201e6 * 6016 / 8)
    assert facts["power_limit_w"] == 700.0
    assert (facts["ecc"], facts["mig"], facts["persistence"]) == (True, False, True)
    nowhere = json.loads(StandIn(tmp_path / "nowhere", tmp_path).python("-c", program).stdout)
    assert set(nowhere.values()) == {None}


# -- energy -----------------------------------------------------------------------------------------------------------


def stepping(power, step=0.1, until=2.0, idle=0.0):
    """Readings every 5 ms of a counter that steps every `step` seconds."""
    moments = np.arange(0.0, until, 0.005)
    return [(float(moment), power * step * np.floor((moment + idle) / step)) for moment in moments]


def test_power_between_steps_is_exact_where_first_and_last_readings_are_a_step_off():
    readings = stepping(300.0, until=0.78, idle=0.03)
    rough = (readings[-1][1] - readings[0][1]) / (readings[-1][0] - readings[0][0])
    assert abs(rough - 300.0) > 7
    assert counter_power(readings) == pytest.approx(300.0, rel=0.02)


def test_too_few_steps_give_no_power():
    assert counter_power(stepping(300.0, until=0.4)) is None
    assert counter_power([]) is None


def test_energy_a_call_is_power_times_time_over_calls():
    def keep_busy(seconds):
        time.sleep(seconds)
        return 50

    start = time.monotonic()
    energy = measure_energy(keep_busy, lambda: 200.0 * 0.01 * int((time.monotonic() - start) / 0.01), 0.3)
    assert energy.calls == 50
    assert energy.power_w == pytest.approx(200.0, rel=0.2)
    assert energy.joules_a_call == energy.power_w * energy.seconds / 50


def test_a_gpu_without_an_energy_counter_has_no_energy():
    assert measure_energy(lambda seconds: 10, lambda: None, 0.05) is None


def test_a_gpu_that_is_lost_while_busy_has_no_energy():
    from marlin_bench.nvml import NvmlError

    def lost():
        raise NvmlError("GPU is lost")

    assert measure_energy(lambda seconds: 10, lost, 0.05) is None


# -- the probe's arithmetic -------------------------------------------------------------------------------------------


def stamps(nanoseconds, cycles):
    return np.array(list(zip(nanoseconds, cycles, strict=True)), dtype=np.int64)


def test_the_probe_takes_the_median_over_sms_that_left_both_stamps():
    earlier = stamps([1000, 1000, 0, 1000], [500, 9000, 0, 700])
    later = stamps([101_000, 101_000, 101_000, 101_000], [200_500, 209_000, 7, 150_700])
    assert clock_hertz(earlier, later, step_ns=32) == pytest.approx(2e9)


def test_the_probe_tells_nothing_below_a_hundred_timer_steps():
    earlier, later = stamps([1000], [0 + 1]), stamps([1000 + 99 * 32], [6000])
    assert clock_hertz(earlier, later, step_ns=32) is None
    assert clock_hertz(later, earlier, step_ns=32) is None
    assert clock_hertz(stamps([0], [0]), stamps([0], [0]), step_ns=32) is None
