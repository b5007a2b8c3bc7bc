"""One cell: all its backends prepared, checked, timed in randomised blocks (blocks.py), and checked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from marlin_bench.backends import load_backend
from marlin_bench.backends.protocol import Backend, Choice, EightBitActivations, EightBitBackend, Packed
from marlin_bench.blocks import Timing
from marlin_bench.check import check_output, fault, poison
from marlin_bench.entrant import DISTINCT_SETS, DTYPES, L2_ROUNDS, Emitter, Entrant, Job, LayerCache
from marlin_bench.machine import Machine
from marlin_bench.operands import LayerKey, WeightSource, expected_product, make_activations
from marlin_bench.problem import DTYPE_BITS
from marlin_bench.record import Check, Flag, Record, Rotation, Status, TimerName, Tuning, record_id
from marlin_bench.timer import Launch
from marlin_bench.torch_state import watched
from marlin_bench.tuning import SEARCH_SECONDS, question_of, search

_MOST_CANONICAL_ERROR = 0.5  # of the mean output; pruning to 2:4, the coarsest thing that is done here, takes 0.4
_MOST_QUANTIZATION_ERROR = 0.1  # of the mean activation; E4M3 takes 0.03
_SEARCH_BLOCK_SECONDS = 0.002  # what a candidate of a search is timed with


class CellMeasurement:
    """The verbs of one cell."""

    def __init__(self, job: Job, machine: Machine, cache: LayerCache, emitter: Emitter) -> None:
        self.job, self.machine, self.cache, self.emitter = job, machine, cache, emitter
        self.cell = job.cell
        self.timing = Timing(job, machine, emitter, self._watched)
        self.started = time.monotonic()
        self._activations: dict[str, list[Tensor]] = {}
        self._canonical: dict[str, list[Tensor]] = {}
        self._changed_settings: dict[str, set[str]] = {}

    def _watched(self, backend: str) -> AbstractContextManager[None]:
        """Around whatever runs a backend's code: what it changes for the whole process is put back and remembered."""
        return watched(self._changed_settings.setdefault(backend, set()))

    # -- preparation ------------------------------------------------------------------------------------------------

    def prepare(self) -> list[Entrant]:
        """Every backend that can run, packed and tuned; the others leave a record with their reason."""
        key = LayerKey(self.cell.K, self.cell.N, self.cell.group_size, self.cell.seed)
        entrants = []
        for name in self.job.backends:
            self.emitter.phase(name, "prepare")
            backend = load_backend(name)
            refusal = self._refusal(backend)
            if refusal is not None:
                self.emitter.record(self._record(backend, "kernel", *refusal))
                continue
            try:
                self.cache.turn_to(key, self.machine)
                entrants.append(self._enter(backend))
            except torch.OutOfMemoryError as error:
                self.cache.packed.pop(name, None)
                self.machine.release_memory()
                reason = str(error).splitlines()[0]
                self.emitter.record(self._record(backend, "kernel", Status.OUT_OF_MEMORY, reason))
        return entrants

    def _refusal(self, backend: Backend) -> tuple[Status, str] | None:
        if backend.device != self.machine.traits.kind:
            return Status.UNSUPPORTED, f"it runs on {backend.device}, this is a {self.machine.traits.kind} device"
        missing = backend.missing()
        if missing is not None:
            return Status.MISSING, f"{missing.reason}: {missing.remedy}"
        sentence = backend.unsupported(self.cell.problem, self.machine.traits)
        if sentence is not None:
            return Status.UNSUPPORTED, sentence
        try:
            with self._watched(backend.name):
                backend.load()
        except (ImportError, OSError, AttributeError) as error:
            return Status.MISSING, f"it cannot be loaded ({' '.join(str(error).split())}): {backend.remedy()}"
        return None

    def _enter(self, backend: Backend) -> Entrant:
        began = time.monotonic()
        with self._watched(backend.name):
            packed = self.cache.packed_sets(backend, self.machine)
            distinct = self._activation_sets(backend.activation_dtype)
            activations = [distinct[index % DISTINCT_SETS] for index in range(len(packed))]
            outputs = [
                torch.empty(
                    (self.cell.M, self.cell.N), dtype=DTYPES[backend.output_dtype], device=self.machine.torch_device
                )
                for _ in packed
            ]
            eight_bit: list[EightBitActivations] = []
            if isinstance(backend, EightBitBackend):
                eight_bit = [backend.quantize(activation) for activation in distinct]
                for given in eight_bit:
                    given.quantize()

            def launches_with(choice: Choice) -> list[Launch]:
                if isinstance(backend, EightBitBackend):
                    given = [eight_bit[index % DISTINCT_SETS] for index in range(len(packed))]
                    return [
                        backend.multiply(*operands, choice) for operands in zip(packed, given, outputs, strict=True)
                    ]
                return [
                    backend.launch(*operands, choice) for operands in zip(packed, activations, outputs, strict=True)
                ]

            choice, tuning = self._choose(backend, packed, activations, outputs, launches_with)
            launches = launches_with(choice)
            self.machine.synchronize()
        prepare_s = time.monotonic() - began
        expected = self._expected(backend, packed, eight_bit)
        return Entrant(backend, packed, outputs, expected, choice, tuning, launches, prepare_s, eight_bit)

    def _choose(
        self,
        backend: Backend,
        packed: Sequence[Packed],
        activations: Sequence[Tensor],
        outputs: Sequence[Tensor],
        launches_with: Callable[[Choice], list[Launch]],
    ) -> tuple[Choice, Tuning]:
        """What `backend` runs with: the fastest of its candidates, or what it settles on itself."""
        self.emitter.phase(backend.name, "tune")
        effort = self.job.effort
        question = question_of(backend, self.cell.problem, self.machine.traits, effort)
        if question is None:
            began = time.monotonic()
            choice = backend.tune(packed, activations, outputs, effort)
            self.machine.synchronize()
            return choice, Tuning(effort=effort, seconds=time.monotonic() - began)
        limit_s = min(SEARCH_SECONDS[effort], self.job.sampling.timeout_seconds / 2)

        def seconds_of(candidate: Choice) -> float:
            self.emitter.phase(backend.name, "tune")  # a sign of life for each
            launches = launches_with(candidate)
            for launch in launches:
                launch()
            self.machine.synchronize()
            stopwatch = self.machine.timers["kernel"].stopwatch(launches, _SEARCH_BLOCK_SECONDS)
            return min(min(stopwatch.sample().times) for _ in range(2))

        return search(question, seconds_of, limit_s=limit_s)

    def _activation_sets(self, dtype: str) -> list[Tensor]:
        if dtype not in self._activations:
            self._activations[dtype] = [
                make_activations(
                    self.cell.seed, self.cell.M, self.cell.K, index, DTYPES[dtype], self.machine.torch_device
                )
                for index in range(DISTINCT_SETS)
            ]
        return self._activations[dtype]

    def _expected(
        self, backend: Backend, packed: Sequence[Packed], eight_bit: Sequence[EightBitActivations]
    ) -> list[Tensor]:
        """Float64 answers of the distinct sets; those judged against the canonical operands share theirs."""
        count = min(DISTINCT_SETS, len(packed))
        if not eight_bit and not any(one.reference for one in packed[:count]):
            return self._canonical_products(backend.activation_dtype)[:count]
        activations = self._activation_sets(backend.activation_dtype)
        return [
            expected_product(
                eight_bit[index].dequantized() if eight_bit else activations[index],
                WeightSource(self.cache.weights[index], packed[index].reference),
            )
            for index in range(count)
        ]

    def _canonical_products(self, activation_dtype: str) -> list[Tensor]:
        """Float64 products of the activations of a dtype with the canonical weights."""
        if activation_dtype not in self._canonical:
            activations = self._activation_sets(activation_dtype)
            self._canonical[activation_dtype] = [
                expected_product(activations[index], WeightSource(self.cache.weights[index]))
                for index in range(DISTINCT_SETS)
            ]
        return self._canonical[activation_dtype]

    # -- checks -----------------------------------------------------------------------------------------------------

    def check_before(self, entrants: list[Entrant]) -> list[Entrant]:
        """Run every launch once on poisoned outputs; the wrong ones leave a record."""
        right = []
        for entrant in entrants:
            self.emitter.phase(entrant.name, "check")
            with self._watched(entrant.name):
                results = self._run_once(entrant)
            if self._judge(entrant, results, entrant.expected, "before") and self._is_near_canonical(entrant, results):
                right.append(entrant)
        return right

    def _is_near_canonical(self, entrant: Entrant, results: Sequence[Tensor]) -> bool:
        """How far the product of a backend's own operands is from that of the operands it was given.

        Being right by its own account is not enough: whoever holds noughts and says so would be.
        """
        if not entrant.eight_bit and not any(one.reference for one in entrant.packed):
            return True
        canonical = self._canonical_products(entrant.backend.activation_dtype)[0]
        error = check_output(results[0], canonical, 0.0, "before").mean_error
        entrant.canonical_error = error
        if error < _MOST_CANONICAL_ERROR:
            return True
        entrant.reason = f"its product is {error:.3g} off that of the weights it was given"
        self.emitter.record(self._record(entrant.backend, "kernel", Status.WRONG, entrant.reason, entrant))
        return False

    def _run_once(self, entrant: Entrant) -> list[Tensor]:
        """Every launch once, with what each gave; the first call, which may compile, is timed."""
        results: list[Tensor] = []
        for output in entrant.outputs:
            poison(output)
        for launch, output in zip(entrant.launches, entrant.outputs, strict=True):
            stale = torch.empty_like(output)  # memory that a result of the backend's own is likely to be made in
            poison(stale)
            del stale
            began = time.monotonic()
            own = launch()
            if not results:
                self.machine.synchronize()
                entrant.tuning = entrant.tuning.model_copy(update={"first_call_s": time.monotonic() - began})
            results.append(output if own is None else own)
        self.machine.synchronize()
        return results

    def check_after(self, entrants: list[Entrant]) -> list[Entrant]:
        """Replay what was timed on other activations: whoever cached an answer, or stopped computing, is caught.

        The new activations are the old ones negated and turned by a row, in place; so are the expected answers.
        """
        for sets in self._activations.values():
            for activation in sets:
                activation.copy_(activation.roll(1, 0).neg_())
        right = []
        for entrant in entrants:
            self.emitter.phase(entrant.name, "check after timing")
            stopwatch = entrant.stopwatches["kernel"]
            for output in (*entrant.outputs, *(result for result in stopwatch.results if result is not None)):
                poison(output)
            with self._watched(entrant.name):
                for given in entrant.eight_bit:
                    given.quantize()
                self.machine.synchronize()
                stopwatch.sample()
            results = [
                output if own is None else own for own, output in zip(stopwatch.results, entrant.outputs, strict=True)
            ]
            expected = [answer.roll(1, 0).neg() for answer in entrant.expected]
            if entrant.eight_bit:  # a quantiser need not be symmetric
                expected = self._expected(entrant.backend, entrant.packed, entrant.eight_bit)
            if self._judge(entrant, results, expected, "after"):
                right.append(entrant)
        return right

    def _judge(self, entrant: Entrant, results: Sequence[Tensor], expected: list[Tensor], when: str) -> bool:
        last = len(results) - 1
        entrant.reason = self._stale_activations(entrant)
        if entrant.reason:
            entrant.reason = f"{entrant.reason} ({when} timing)"
            self.emitter.record(self._record(entrant.backend, "kernel", Status.WRONG, entrant.reason, entrant))
            return False
        worst: Check | None = None
        for index in sorted({*range(len(expected)), last}):
            entrant.reason = self._misfit(entrant.backend, results[index])
            if entrant.reason:
                break
            check = check_output(
                results[index],
                expected[index % len(expected)],
                entrant.backend.tolerance,
                "after" if when == "after" else "before",
            )
            entrant.reason = fault(check)
            if worst is None or entrant.reason or check.mean_error > worst.mean_error:
                worst = check
            if entrant.reason:
                break
        if worst is not None:
            entrant.checks.append(worst)
        if entrant.reason is None:
            return True
        self.emitter.record(self._record(entrant.backend, "kernel", Status.WRONG, entrant.reason, entrant))
        return False

    def _stale_activations(self, entrant: Entrant) -> str | None:
        """One sentence when 8-bit activations do not stand for those that were given."""
        given = self._activation_sets(entrant.backend.activation_dtype)
        for activations, quantized in zip(given, entrant.eight_bit, strict=False):
            difference = (quantized.dequantized().float() - activations.float()).abs().mean()
            error = float(difference / activations.float().abs().mean())
            if not error < _MOST_QUANTIZATION_ERROR:
                return f"its 8-bit activations are {error:.3g} off the ones it was given"
        return None

    def _misfit(self, backend: Backend, result: Tensor) -> str | None:
        """One sentence when a result of the backend's own is no [M, N] tensor of its output dtype."""
        wanted = ((self.cell.M, self.cell.N), DTYPES[backend.output_dtype])
        if (tuple(result.shape), result.dtype) == wanted:
            return None
        return f"it gives {result.dtype} {list(result.shape)} where {wanted[1]} {list(wanted[0])} belongs"

    # -- records ----------------------------------------------------------------------------------------------------

    def finish(self, entrants: list[Entrant]) -> None:
        """A record for every timer of every backend that is right and possible."""
        for entrant in entrants:
            sentence = self._impossible(entrant)
            if sentence is not None:
                record = self._record(entrant.backend, "kernel", Status.IMPOSSIBLE, sentence, entrant)
                self.emitter.record(record)
                continue
            for timer, blocks in entrant.blocks.items():
                record = self._record(entrant.backend, timer, Status.OK, None, entrant)
                self.emitter.record(
                    record.model_copy(
                        update={
                            "blocks": blocks,
                            "throttled_blocks": entrant.throttled_blocks[timer],
                            "converged": entrant.converged[timer],
                            "flags": self._flags(timer, entrant),
                            "cell_power_w": self.timing.power_w,
                            "energy": entrant.energy if timer == self.cell.timers[0] else None,
                        }
                    )
                )

    def _impossible(self, entrant: Entrant) -> str | None:
        problem, backend = self.cell.problem, entrant.backend
        fmt = backend.format(problem)
        resident = self._rotation(entrant, "kernel").bytes < self.machine.traits.l2_bytes
        bits = DTYPE_BITS[backend.operand_dtype]
        moved = 0.0 if resident else problem.traffic(fmt, bits, DTYPE_BITS[backend.output_dtype]).total
        flop = problem.executed_flop(fmt) * min(bits, 16) / 16  # tensor cores are twice as fast on 8 bits as on 16
        for blocks in entrant.blocks.values():
            times = [time for block in blocks for time in block.times]
            clocks = [block.sm_clock_hz for block in blocks if block.sm_clock_hz]
            floor = self.machine.limits.floor_seconds(moved, flop, max(clocks, default=None))
            typical = sorted(times)[len(times) // 2]
            if not typical >= floor:
                return f"median {typical:.4g} s is below the physical floor of {floor:.4g} s"
        return None

    def _rotation(self, entrant: Entrant, timer: TimerName) -> Rotation:
        stopwatch = entrant.stopwatches.get(timer)
        return Rotation(
            sets=len(entrant.packed),
            bytes=sum(one.nbytes for one in entrant.packed),
            launches=stopwatch.launches if stopwatch else 0,
        )

    def _flags(self, timer: TimerName, entrant: Entrant) -> list[Flag]:
        flags = {flag for block in entrant.blocks[timer] for flag in block.flags}
        if not entrant.converged[timer]:
            flags.add(Flag.NOT_CONVERGED)
        if self._rotation(entrant, timer).bytes < L2_ROUNDS * self.machine.traits.l2_bytes:
            flags.add(Flag.FEW_OPERAND_SETS)
        if self._changed_settings.get(entrant.name):
            flags.add(Flag.CHANGED_SETTINGS)
        return sorted(flags)

    def _record(
        self, backend: Backend, timer: TimerName, status: Status, reason: str | None, entrant: Entrant | None = None
    ) -> Record:
        cell = self.cell
        made = Record.model_construct(
            id=record_id(self.job.device, f"{cell.suite}/{cell.id}", backend.name, timer),
            run=self.job.run,
            cell=cell.id,
            suite=cell.suite,
            layer=cell.layer,
            device=self.job.device,
            timer=timer,
            backend=backend.name,
            backend_version=backend.version() if status is not Status.MISSING else "missing",
            kernel_digest=backend.kernel_digest(),
            baseline=backend.name in self.job.baselines,
            M=cell.M,
            N=cell.N,
            K=cell.K,
            group_size=cell.group_size,
            format=backend.format(cell.problem).name,
            activation_dtype=backend.operand_dtype,
            output_dtype=backend.output_dtype,
            status=status,
            reason=reason,
            clocks_locked=self.job.clocks_locked,
            profile=self.job.profile,
            seed=cell.seed,
            isolated=self.job.isolated,
        )
        if entrant is None:
            return made
        return made.model_copy(
            update={
                "stored_bytes": entrant.packed[0].nbytes,
                "choice": dict(entrant.choice),
                "tuning": entrant.tuning,
                "prepare_s": entrant.prepare_s,
                "activation_quantization_s": entrant.quantization_s,
                "canonical_error": entrant.canonical_error,
                "checks": entrant.checks,
                "rotation": self._rotation(entrant, timer),
            }
        )


def measure_cell(job: Job, machine: Machine, cache: LayerCache, emitter: Emitter) -> float:
    """Measure one cell; its records go to `emitter`. Gives the seconds spent inside timed work."""
    cell = CellMeasurement(job, machine, cache, emitter)
    entrants = cell.check_before(cell.prepare())
    if job.verify_only:
        for entrant in entrants:
            emitter.verified(entrant.name, entrant.checks[-1])
        return 0.0
    cell.timing.time(entrants)
    cell.finish(cell.check_after(entrants))
    return cell.timing.timed_s
