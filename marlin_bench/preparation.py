"""Before a cell is timed: each of its backends loaded, its weights packed, its choice made, its launches bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from marlin_bench.backends import load_backend
from marlin_bench.backends.protocol import Backend, Choice, EightBitActivations, EightBitBackend, Packed
from marlin_bench.cell_answers import Answers
from marlin_bench.cell_records import CellRecords
from marlin_bench.entrant import DISTINCT_SETS, DTYPES, Emitter, Entrant, Job, LayerCache
from marlin_bench.machine import Machine
from marlin_bench.operands import LayerKey
from marlin_bench.record import Status, Tuning
from marlin_bench.timer import Launch
from marlin_bench.torch_state import SettingsWatch
from marlin_bench.tuning import SEARCH_SECONDS, ask, question_of, search

_SEARCH_BLOCK_SECONDS = 0.002  # what a candidate of a search is timed with


class Preparation:
    """Makes entrants of a cell's backends."""

    def __init__(
        self,
        job: Job,
        machine: Machine,
        cache: LayerCache,
        emitter: Emitter,
        *,
        answers: Answers,
        records: CellRecords,
        watch: SettingsWatch,
    ) -> None:
        self.job, self.machine, self.cache, self.emitter = job, machine, cache, emitter
        self.answers, self.records, self.watch = answers, records, watch
        self.cell = job.cell

    def prepare(self) -> list[Entrant]:
        """Every backend that can run, packed and tuned; the others leave a record with their reason."""
        key = LayerKey(self.cell.K, self.cell.N, self.cell.group_size, self.cell.seed)
        entrants = []
        for name in self.job.backends:
            self.emitter.phase(name, "prepare")
            backend = load_backend(name)
            refusal = self._refusal(backend)
            if refusal is not None:
                self.records.without_samples(backend, *refusal)
                continue
            try:
                self.cache.turn_to(key, self.machine)
                entrants.append(self._enter(backend))
            except torch.OutOfMemoryError as error:
                self.cache.packed.pop(name, None)
                self.machine.release_memory()
                reason = str(error).splitlines()[0]
                self.records.without_samples(backend, Status.OUT_OF_MEMORY, reason)
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
            with self.watch(backend.name):
                backend.load()
        except (ImportError, OSError, AttributeError) as error:
            return Status.MISSING, f"it cannot be loaded ({' '.join(str(error).split())}): {backend.remedy()}"
        return None

    def _enter(self, backend: Backend) -> Entrant:
        began = time.monotonic()
        with self.watch(backend.name):
            packed = self.cache.packed_sets(backend, self.machine)
            distinct = self.answers.activations(backend.activation_dtype)
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
        expected = self.answers.expected(backend, packed, choice, eight_bit)
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
        if not question.candidates:

            def tune() -> Choice:
                choice = backend.tune(packed, activations, outputs, effort)
                self.machine.synchronize()
                return choice

            return ask(question, tune, is_kept=backend.tune_is_kept)
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
