"""One cell on the simulated device: who is judged how, and when sampling stops."""

import dataclasses
import itertools

import pytest
from simulated import IMPOSTORS, SimulatedMachine, SimulatedStopwatch, SimulatedTimer

from marlin_bench.entrant import DISTINCT_SETS, Job, LayerCache, rotation_sets
from marlin_bench.measure import measure_cell
from marlin_bench.plan import Cell
from marlin_bench.record import Flag, Record, Status, Telemetry
from marlin_bench.suite_format import Sampling


class Collector:
    def __init__(self):
        self.records, self.blocks, self.verified_backends = [], [], []

    def phase(self, backend, phase):
        pass

    def block(self, timer, backend, block):
        self.blocks.append((backend, block))

    def verified(self, backend, check):
        self.verified_backends.append(backend)

    def record(self, record):
        self.records.append(Record.model_validate(record.model_dump()))


def measure(backends, M=5, machine=None, baselines=("sim_fp16",), collector=None, **options):
    sampling = Sampling(min_blocks=6, max_blocks=40, block_seconds=0.001, **options.pop("sampling", {}))
    cell = Cell("layer/g128/M5", "suite", "layer", M, 128, 256, 128, tuple(backends), 7, ("kernel",))
    job = Job(cell, tuple(backends), baselines, sampling, run="run", device="simulated", **options)
    collector = collector or Collector()
    measure_cell(job, machine or SimulatedMachine(), LayerCache(), collector)
    return collector


def by_backend(collector):
    return {record.backend: record for record in collector.records}


def test_a_right_backend_is_ok_and_carries_its_samples_and_both_checks():
    record = by_backend(measure(["sim_fp16", "sim_int4"]))["sim_int4"]
    assert record.status is Status.OK
    assert [check.when for check in record.checks] == ["before", "after"]
    assert all(check.nan == check.untouched == 0 and check.mean_error < 1e-3 for check in record.checks)
    assert len(record.blocks) >= 6
    assert record.format == "int4_g128"


@pytest.mark.parametrize("impostor", IMPOSTORS, ids=lambda impostor: impostor.name)
def test_an_impostor_never_gets_a_speed_up(impostor):
    record = by_backend(measure(["sim_fp16", impostor.name]))[impostor.name]
    assert record.status in {Status.WRONG, Status.IMPOSSIBLE}
    assert record.blocks == []
    assert record.reason
    assert by_backend(measure(["sim_fp16", impostor.name]))["sim_fp16"].status is Status.OK


def test_only_the_impostor_below_the_physical_floor_is_called_impossible():
    collector = measure(["sim_fp16", "faster_than_light"])
    record = by_backend(collector)["faster_than_light"]
    assert record.status is Status.IMPOSSIBLE
    assert "physical floor" in record.reason


def test_an_unwritten_output_is_told_from_a_nan():
    assert "not written" in by_backend(measure(["sim_fp16", "writes_nothing"]))["writes_nothing"].reason
    assert "NaN" in by_backend(measure(["sim_fp16", "gives_nan"]))["gives_nan"].reason


def test_what_cannot_run_leaves_its_reason():
    records = by_backend(measure(["sim_fp16", "sim_missing", "sim_unsupported", "sim_out_of_memory"]))
    assert records["sim_missing"].status is Status.MISSING
    assert "pip install sim" in records["sim_missing"].reason
    assert records["sim_unsupported"].status is Status.UNSUPPORTED
    assert "M 5 is above 4" in records["sim_unsupported"].reason
    assert records["sim_out_of_memory"].status is Status.OUT_OF_MEMORY
    assert records["sim_fp16"].status is Status.OK


def test_a_gpu_backend_is_unsupported_on_a_cpu():
    record = by_backend(measure(["sim_fp16", "cublas_fp16"]))["cublas_fp16"]
    assert record.status is Status.UNSUPPORTED
    assert "cuda" in record.reason


def test_every_block_times_every_backend_once_in_an_order_that_changes():
    collector = measure(["sim_fp16", "sim_int4", "sim_int4_twin"])
    orders = {}
    for backend, block in collector.blocks:
        orders.setdefault(block.index, {})[block.order] = backend
    assert all(sorted(order) == [0, 1, 2] for order in orders.values())
    assert len({tuple(order[position] for position in range(3)) for order in orders.values()}) > 1


def test_sampling_stops_early_without_noise_and_goes_on_with_it():
    quiet = by_backend(measure(["sim_fp16", "sim_int4"]))["sim_int4"]
    noisy = by_backend(measure(["sim_fp16", "sim_int4"], machine=SimulatedMachine(noise=0.05)))["sim_int4"]
    assert quiet.converged
    assert len(quiet.blocks) < 40
    assert not noisy.converged
    assert len(noisy.blocks) == 40
    assert Flag.NOT_CONVERGED in noisy.flags


def test_a_spent_budget_ends_a_cell_as_not_converged():
    record = by_backend(
        measure(["sim_fp16", "sim_int4"], machine=SimulatedMachine(noise=0.05), sampling={"cell_seconds": 1e-9})
    )["sim_int4"]
    assert len(record.blocks) == 6
    assert record.converged is False


class NoisyBaseline(SimulatedTimer):
    """The slowest backend is noisy, the others are not."""

    def stopwatch(self, launches, block_seconds):
        slow = launches[0].seconds > 6e-8
        return SimulatedStopwatch(self if slow else SimulatedTimer(), launches)


def test_a_twin_is_held_against_its_original_which_stays_as_long_as_it():
    machine = SimulatedMachine()
    machine.timers["kernel"] = NoisyBaseline(noise=0.05)
    records = by_backend(measure(["sim_fp16", "sim_int4", "sim_int4@twin"], machine=machine))
    assert records["sim_int4@twin"].converged
    assert len(records["sim_int4@twin"].blocks) < 40
    assert not records["sim_int4"].converged

    machine.timers["kernel"] = SimulatedTimer(noise=0.05)
    records = by_backend(measure(["sim_fp16", "sim_fp16@twin"], machine=machine))
    assert not records["sim_fp16@twin"].converged
    assert len(records["sim_fp16"].blocks) == len(records["sim_fp16@twin"].blocks) == 40


@pytest.mark.parametrize(("duty_cycle", "rests"), [(1.0, 0.0), (0.5, 1.0), (0.2, 4.0)])
def test_the_card_rests_after_each_turn_for_its_share_of_the_time(monkeypatch, duty_cycle, rests):
    events = []
    sample_of = SimulatedStopwatch.sample

    def watched_sample(stopwatch):
        sample = sample_of(stopwatch)
        events.append(("turn", sample.ended - sample.started))
        return sample

    monkeypatch.setattr(SimulatedStopwatch, "sample", watched_sample)
    monkeypatch.setattr("marlin_bench.blocks.time.sleep", lambda seconds: events.append(("rest", seconds)))
    blocks = measure(["sim_fp16", "sim_int4"], sampling={"duty_cycle": duty_cycle}).blocks
    rested = [(before, seconds) for before, (what, seconds) in itertools.pairwise(events) if what == "rest"]
    assert len(rested) == (len(blocks) if rests else 0)
    for (what, worked), seconds in rested:
        assert what == "turn"
        assert seconds == pytest.approx(rests * worked)


def test_settling_runs_the_rotation_before_the_first_block_and_records_none_of_it():
    settled, at_once = Collector(), Collector()
    for collector, seconds in ((settled, 0.05), (at_once, 0.0)):
        collector.phases = []
        collector.phase = lambda backend, phase, kept=collector.phases: kept.append((backend, phase))
        measure(["sim_fp16", "sim_int4"], sampling={"settle_seconds": seconds}, collector=collector)
    assert {backend for backend, phase in settled.phases if phase == "settle"} == {"sim_fp16", "sim_int4"}
    assert settled.phases.index(("sim_int4", "settle")) < settled.phases.index(("sim_int4", "timing"))
    assert not any(phase == "settle" for _, phase in at_once.phases)
    assert len(by_backend(settled)["sim_int4"].blocks) == len(by_backend(at_once)["sim_int4"].blocks)


def test_times_are_those_of_the_timer():
    record = by_backend(measure(["sim_fp16", "sim_int4"]))["sim_int4"]
    expected = (5 * 256 * 2 + 5 * 128 * 2 + 256 * 128 / 2 + 2 * 128 * 2) / 1e12 / 0.8
    assert record.times == pytest.approx([expected] * len(record.times))


def test_asked_to_finish_it_keeps_what_it_has():
    collector = measure(["sim_fp16", "sim_int4"], machine=SimulatedMachine(noise=0.05), finish=lambda: True)
    assert len(by_backend(collector)["sim_int4"].blocks) == 1


def test_verify_only_times_nothing():
    collector = measure(["sim_fp16", "gives_zeros", "sim_int4"], verify_only=True)
    assert collector.verified_backends == ["sim_fp16", "sim_int4"]
    assert by_backend(collector)["gives_zeros"].status is Status.WRONG
    assert collector.blocks == []


def test_a_block_under_hardware_slowdown_is_measured_again_kept_and_flagged(monkeypatch):
    monkeypatch.setattr("marlin_bench.blocks._COOL_DOWN_SECONDS", 0.0)
    calls = []

    def window(started, ended):
        calls.append((started, ended))
        return Telemetry(event_reasons=["hw_slowdown"])

    collector = measure(["sim_fp16"], machine=SimulatedMachine(window=window))
    record = by_backend(collector)["sim_fp16"]
    assert len(record.throttled_blocks) == 2 * len(record.blocks)  # three attempts each, the last one counts
    assert len(calls) >= 3 * len(record.blocks)
    assert all(block.flags == [Flag.THROTTLED] for block in [*record.blocks, *record.throttled_blocks])
    assert Flag.THROTTLED in record.flags


def test_after_a_cool_down_the_clean_block_counts_and_the_throttled_one_is_kept(monkeypatch):
    monkeypatch.setattr("marlin_bench.blocks._COOL_DOWN_SECONDS", 0.0)
    reasons = iter([["hw_thermal"], *([[]] * 1000)])
    machine = SimulatedMachine(window=lambda started, ended: Telemetry(event_reasons=next(reasons)))
    record = by_backend(measure(["sim_fp16"], machine=machine))["sim_fp16"]
    assert len(record.throttled_blocks) == 1
    assert Flag.THROTTLED not in record.flags


def test_the_same_seed_gives_the_same_order_of_turns():
    first, second = measure(["sim_fp16", "sim_int4"]), measure(["sim_fp16", "sim_int4"])
    assert [block.order for _, block in first.blocks] == [block.order for _, block in second.blocks]


@pytest.mark.parametrize(
    ("packed", "cache", "memory", "sets"),
    [
        (8_650_000, 60_000_000, 139 << 30, 35),  # 4096x4096 int4 on an H200
        (700_000_000, 60_000_000, 139 << 30, DISTINCT_SETS),  # 72k x 18k there
        (2_718_000_000, 6_000_000, 22 << 30, 1),  # its FP16 weights on an A10: a second copy would be a quarter of it
        (1000, 60_000_000, 139 << 30, 512),
    ],
)
def test_rotation_reads_five_times_the_cache(packed, cache, memory, sets):
    assert rotation_sets(packed, cache, memory) == sets


def test_a_round_smaller_than_five_caches_is_flagged():
    machine = SimulatedMachine()
    assert Flag.FEW_OPERAND_SETS not in by_backend(measure(["sim_int4"], machine=machine))["sim_int4"].flags
    machine.traits = dataclasses.replace(machine.traits, l2_bytes=1 << 30)
    assert Flag.FEW_OPERAND_SETS in by_backend(measure(["sim_int4"], machine=machine))["sim_int4"].flags


def test_energy_is_measured_only_where_it_is_asked_for():
    assert by_backend(measure(["sim_fp16"]))["sim_fp16"].energy is None
    energy = by_backend(measure(["sim_fp16"], energy_seconds=0.5))["sim_fp16"].energy
    assert (energy.calls, energy.seconds, energy.power_w) == (100, 0.5, 300.0)


def test_a_twin_is_the_same_backend_under_another_name():
    records = by_backend(measure(["sim_fp16", "sim_int4", "sim_int4@twin"]))
    assert records["sim_int4@twin"].status is Status.OK
    assert records["sim_int4@twin"].times == pytest.approx(records["sim_int4"].times)
    assert by_backend(measure(["sim_fp16", "sim_fp16@twin"]))["sim_fp16@twin"].baseline is False
