"""Probe, telemetry and energy on a real GPU. Reads only: nothing here sets a clock."""

import time
from statistics import median

import pytest

from marlin_bench.record import Flag

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def probe():
    from marlin_bench.clock_probe import ClockProbe

    return ClockProbe()


@pytest.fixture(scope="module")
def uuid():
    from marlin_bench.environment import device_uuid

    return device_uuid()


def product(size):
    """A sustained FP16 product on Gaussian data, as a function that enqueues it."""
    import torch

    left = torch.randn(size, size, dtype=torch.float16, device="cuda")
    right, out = torch.randn_like(left), torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def seconds_of(action):
    import torch

    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    action()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) * 1e-3


def test_the_probe_agrees_with_nvml_within_2_percent_on_a_long_kernel(probe, uuid):
    import torch

    from marlin_bench.telemetry import Sidecar

    probe.spin(300_000_000)  # the clock settles
    with Sidecar(uuid) as sidecar:
        torch.cuda.synchronize()
        start = time.monotonic()
        probe.mark(0)
        probe.spin(1_000_000_000)
        probe.mark(1)
        torch.cuda.synchronize()
        told = sidecar.window(start, time.monotonic())
    print("probe", probe.hertz(0, 1), "nvml", told)
    assert told.sm_clock_hz is not None
    assert probe.hertz(0, 1) == pytest.approx(told.sm_clock_hz, rel=0.02)


def test_spinning_takes_as_long_as_it_is_told(probe):
    assert seconds_of(lambda: probe.spin(20_000_000)) == pytest.approx(0.020, rel=0.02)


def test_marks_can_be_captured_and_cost_a_few_microseconds(probe):
    import torch

    from marlin_bench.cuda_timer import capture

    count = 200
    graph = capture([lambda: probe.mark(1)], count)
    graph.replay()
    torch.cuda.synchronize()
    seconds = median(seconds_of(graph.replay) for _ in range(5)) / count
    print("seconds a mark:", seconds)
    assert seconds < 4e-6
    probe.mark(0)
    graph.replay()
    torch.cuda.synchronize()
    assert probe.hertz(0, 1) is not None


def test_every_sm_leaves_a_stamp(probe):
    import torch

    probe.mark(0)
    torch.cuda.synchronize()
    stamped = int((probe._stamps[0, :, 0] > 0).sum())
    assert stamped >= 0.9 * torch.cuda.get_device_properties(0).multi_processor_count


def test_a_clock_that_falls_under_a_sustained_product_is_explained_by_a_reason(probe, uuid):
    import torch

    from marlin_bench.nvml import read_facts
    from marlin_bench.telemetry import Sidecar, flags, must_repeat

    multiply, highest = product(16384), read_facts(uuid).max_sm_clock_hz
    with Sidecar(uuid) as sidecar:
        for _ in range(12):
            multiply()
        torch.cuda.synchronize()
        start = time.monotonic()
        probe.mark(0)
        for _ in range(90):
            multiply()
        probe.mark(1)
        torch.cuda.synchronize()
        told = sidecar.window(start, time.monotonic())
    clock = probe.hertz(0, 1)
    print("16384^3: probe", clock, "nvml", told)
    assert clock is not None
    if clock < 0.97 * highest:
        assert set(told.event_reasons) | set(told.throttle_s)
        assert Flag.POWER_CAPPED in flags(told) or must_repeat(told)
    assert told.power_w == pytest.approx(told.energy_j / (time.monotonic() - start), rel=0.3)


def test_the_sidecar_costs_less_than_1_percent_of_a_block(uuid):
    import torch

    from marlin_bench.cuda_timer import capture
    from marlin_bench.telemetry import Sidecar

    data = torch.randn(1 << 28, dtype=torch.float16, device="cuda")
    out = torch.empty((), dtype=torch.float16, device="cuda")
    block = capture([lambda: torch.amax(data, dim=0, out=out)], 16)  # reads 8.6 GB, bound by memory
    for _ in range(50):
        block.replay()
    torch.cuda.synchronize()

    def wall_and_device():
        start = time.perf_counter()
        device = seconds_of(block.replay)
        return time.perf_counter() - start, device

    ratios = {"host": [], "device": []}
    for _ in range(12):
        alone = [wall_and_device() for _ in range(60)]
        with Sidecar(uuid):
            time.sleep(0.02)
            beside = [wall_and_device() for _ in range(60)]
        for index, name in enumerate(ratios):
            ratios[name].append(
                sum(pair[index] for pair in beside) / sum(pair[index] for pair in alone)  # sums: rare stalls count too
            )
    print("block", alone[0], {name: (median(found), min(found), max(found)) for name, found in ratios.items()})
    assert median(ratios["device"]) < 1.01
    assert median(ratios["host"]) < 1.01


def test_energy_a_call_is_what_the_power_sensor_says(uuid):
    import torch

    from marlin_bench.energy import measure_energy
    from marlin_bench.nvml import open_device

    multiply = product(8192)
    powers = []

    with open_device(uuid) as device:

        def keep_busy(seconds):
            calls, end = 0, time.monotonic() + seconds
            while time.monotonic() < end:
                for _ in range(20):
                    multiply()
                calls += 20
                torch.cuda.synchronize()
                powers.append(device.instant().power_w)
            return calls

        energy = measure_energy(keep_busy, device.energy_j, 2.0)
    print(energy, energy and energy.joules_a_call, "sensor", median(powers))
    assert energy is not None
    assert energy.power_w == pytest.approx(median(powers[len(powers) // 4 :]), rel=0.15)
