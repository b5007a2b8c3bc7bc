"""A device made of arithmetic: real (small) products on the CPU, invented times, and every way a backend can go bad.

The simulated machine computes what each launch computes, so that answers are really checked, and takes the seconds of
a launch from the launch itself, so that tests know the exact times. Noise, drift and throttling are seeded.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import nullcontext

import torch

from marlin_bench.backends import register
from marlin_bench.backends.protocol import Backend, DeviceTraits, Missing, Packed
from marlin_bench.machine import PhysicalLimits
from marlin_bench.problem import FP16, int4
from marlin_bench.record import Ceiling, EnergyUse, Environment
from marlin_bench.timer import Sample

BANDWIDTH = 1e12
TENSOR_FLOPS = 1e14
CLOCK_HZ = 1.5e9
DEVICE_NAME = "Simulated GPU 1"


class TimedLaunch:
    """A launch that knows how long it takes."""

    def __init__(self, seconds, work):
        self.seconds = seconds
        self.work = work

    def __call__(self):
        return self.work()


class SimulatedTimer:
    """Runs every launch of a round once and reports its own seconds, with seeded noise."""

    name = "kernel"

    def __init__(self, noise=0.0, seed=0):
        self.noise = noise
        self.random = random.Random(seed)

    def stopwatch(self, launches, block_seconds):
        return SimulatedStopwatch(self, launches)


class SimulatedStopwatch:
    def __init__(self, timer, round_launches):
        self.timer = timer
        self.round = round_launches
        self.launches = len(round_launches)
        self.results = []

    def sample(self):
        started = time.monotonic()
        total = 0.0
        self.results = []
        for launch in self.round:
            self.results.append(launch())
            total += getattr(launch, "seconds", 1e-5)
        factor = 1.0 + self.timer.noise * self.timer.random.gauss(0, 1)
        return Sample([total / len(self.round) * factor], started, time.monotonic(), CLOCK_HZ)

    def keep_busy(self, seconds):
        return 100


class SimulatedMachine:
    """One invented GPU with known roofs; `sensors` is None unless telemetry is given."""

    torch_device = "cpu"
    memory_bytes = 1 << 34

    def __init__(self, noise=0.0, window=None, name=DEVICE_NAME, uuid=None):
        self.uuid = uuid
        self.traits = DeviceTraits("cpu", name, l2_bytes=40_000)
        self.timers = {"kernel": SimulatedTimer(noise)}
        self.limits = PhysicalLimits(BANDWIDTH, TENSOR_FLOPS / CLOCK_HZ, CLOCK_HZ)
        self.window = window

    def environment(self):
        return Environment(
            device_name=self.traits.name, device_kind="cpu", cpu="simulated", cpu_threads=1, python="3",
            l2_bytes=self.traits.l2_bytes, commit="0123456789ab", dirty=False, code_digest="simulated",
        )  # fmt: skip

    def synchronize(self):
        pass

    def release_memory(self):
        pass

    def measure_ceilings(self):
        return [
            Ceiling(name="ram_triad", value=BANDWIDTH, detail="simulated"),
            Ceiling(name="dense_fp32", value=TENSOR_FLOPS, detail="simulated"),
        ]

    def energy(self, stopwatch, seconds):
        return EnergyUse(calls=stopwatch.keep_busy(seconds), seconds=seconds, power_w=300.0)

    def clock_under_load(self):
        return CLOCK_HZ

    def sensors(self):
        return nullcontext(self.window)


class Simulated(Backend):
    """Right answers at a fixed share of the roofline; the base of all the others."""

    summary = "simulated"
    device = "cpu"
    efficiency = 0.8

    def version(self):
        return "1"

    def format(self, problem):
        return int4(problem.group_size)

    def pack(self, weights):
        return Packed(
            {"weights": weights.dequantized()}, extra={"shape": (weights.K, weights.N), "group": weights.group_size}
        )

    def seconds(self, activations, output, packed):
        from marlin_bench.problem import Problem

        K, N = packed.extra["shape"]
        problem = Problem(activations.shape[0], N, K, packed.extra["group"])
        fmt = self.format(problem)
        floor = max(problem.traffic(fmt).total / BANDWIDTH, problem.flop / TENSOR_FLOPS)
        return floor / self.efficiency

    def product(self, packed, activations):
        return (activations.double() @ packed.tensors["weights"].double()).half()

    def launch(self, packed, activations, output, choice):
        def work():
            output.copy_(self.product(packed, activations))

        return TimedLaunch(self.seconds(activations, output, packed), work)


@register
class SimFp16(Simulated):
    name = "sim_fp16"
    is_baseline = True

    def format(self, problem):
        return FP16


@register
class SimInt4(Simulated):
    name = "sim_int4"


@register
class SimInt4Twin(Simulated):
    name = "sim_int4_twin"


@register
class SimOwn(Simulated):
    name = "sim_own"
    isolation = "own"


@register
class SimMissing(Simulated):
    name = "sim_missing"

    def missing(self):
        return Missing("the package sim is not installed", "pip install sim")


@register
class SimUnsupported(Simulated):
    name = "sim_unsupported"

    def unsupported(self, problem, device):
        return f"M {problem.M} is above 4" if problem.M > 4 else None


# -- backends that go bad ----------------------------------------------------------------------------------------------


class Counted(Simulated):
    """Goes bad at the n-th launch of a cell."""

    bad_at = 40

    def go_bad(self):
        raise NotImplementedError

    def launch(self, packed, activations, output, choice):
        state = {"launches": 0}

        def work():
            state["launches"] += 1
            if state["launches"] == self.bad_at:
                self.go_bad()
            output.copy_(self.product(packed, activations))

        return TimedLaunch(self.seconds(activations, output, packed), work)


@register
class SimSegfault(Counted):
    name = "sim_segfault"
    bad_at = 8

    def go_bad(self):
        os.kill(os.getpid(), signal.SIGSEGV)


@register
class SimHang(Counted):
    name = "sim_hang"
    bad_at = 8

    def go_bad(self):
        time.sleep(3600)


@register
class SimSlowCell(Counted):
    """Not bad: takes long enough that a test can interrupt."""

    name = "sim_slow"
    bad_at = -1

    def product(self, packed, activations):
        time.sleep(0.01)
        return super().product(packed, activations)


@register
class SimIllegalInstruction(Counted):
    name = "sim_illegal_instruction"
    bad_at = 1

    def go_bad(self):
        raise RuntimeError("CUDA error: an illegal instruction was encountered")


@register
class SimOutOfMemory(Simulated):
    name = "sim_out_of_memory"

    def pack(self, weights):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


# -- the impostors: each lies one way ----------------------------------------------------------------------------------


@register
class WritesNothing(Simulated):
    name = "writes_nothing"

    def launch(self, packed, activations, output, choice):
        return TimedLaunch(self.seconds(activations, output, packed), lambda: None)


@register
class StopsAfterTheCheck(Simulated):
    name = "stops_after_the_check"

    def launch(self, packed, activations, output, choice):
        state = {"first": True}

        def work():
            if state["first"]:
                output.copy_(self.product(packed, activations))
            state["first"] = False

        return TimedLaunch(self.seconds(activations, output, packed), work)


@register
class GivesNan(Simulated):
    name = "gives_nan"

    def product(self, packed, activations):
        answer = super().product(packed, activations)
        answer[0, 0] = float("nan")
        return answer


@register
class GivesZeros(Simulated):
    name = "gives_zeros"

    def product(self, packed, activations):
        return super().product(packed, activations).zero_()


@register
class LastRowMissing(Simulated):
    name = "last_row_missing"

    def launch(self, packed, activations, output, choice):
        def work():
            output[:-1].copy_(self.product(packed, activations)[:-1])

        return TimedLaunch(self.seconds(activations, output, packed), work)


@register
class CachedAnswer(Simulated):
    """Remembers the answer for the activations' address."""

    name = "cached_answer"

    def launch(self, packed, activations, output, choice):
        cache = {}

        def work():
            if "answer" not in cache:
                cache["answer"] = self.product(packed, activations)
            output.copy_(cache["answer"])

        return TimedLaunch(self.seconds(activations, output, packed), work)


@register
class OnlyTheFirstSet(Simulated):
    """Computes with the weights it saw first."""

    name = "only_the_first_set"

    def __init__(self):
        self.first = None

    def product(self, packed, activations):
        self.first = self.first or packed
        return super().product(self.first, activations)


@register
class OnlyMultiplesOf64(Simulated):
    """Pads M wrongly: rows past the last whole 64 repeat the first row."""

    name = "only_multiples_of_64"

    def product(self, packed, activations):
        answer = super().product(packed, activations)
        whole = answer.shape[0] // 64 * 64
        answer[whole:] = answer[:1]
        return answer


@register
class LowerPrecision(Simulated):
    """Three mantissa bits."""

    name = "lower_precision"

    def product(self, packed, activations):
        weights = packed.tensors["weights"].to(torch.float8_e4m3fn).double()
        return (activations.double() @ weights).half()


@register
class OtherStream(Simulated):
    """Returns before it has computed: the answer arrives later, where nobody waits for it."""

    name = "other_stream"

    def launch(self, packed, activations, output, choice):
        pending = []

        def work():
            pending.append(self.product(packed, activations))  # handed over only at some later launch
            if len(pending) > 1:
                output.copy_(pending.pop(0))

        return TimedLaunch(self.seconds(activations, output, packed), work)


@register
class FasterThanLight(Simulated):
    """Right, in less time than its bytes take over the bus."""

    name = "faster_than_light"
    efficiency = 1.25


IMPOSTORS = [
    WritesNothing, StopsAfterTheCheck, GivesNan, GivesZeros, LastRowMissing, CachedAnswer, OnlyTheFirstSet,
    OnlyMultiplesOf64, LowerPrecision, OtherStream, FasterThanLight,
]  # fmt: skip
