"""Right before timing and right after it: what the launches of a cell give, against what they must (check.py)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from marlin_bench.backends.protocol import Backend
from marlin_bench.cell_answers import Answers, changed
from marlin_bench.cell_records import CellRecords
from marlin_bench.check import check_output, fault, poison
from marlin_bench.entrant import DTYPES, Emitter, Entrant
from marlin_bench.machine import Machine
from marlin_bench.record import Check, Status
from marlin_bench.torch_state import SettingsWatch

_MOST_CANONICAL_ERROR = 0.5  # of the mean output; pruning to 2:4, the coarsest thing that is done here, takes 0.4
_MOST_QUANTIZATION_ERROR = 0.1  # of the mean activation; E4M3 takes 0.03


class Correctness:
    """Lets through whoever is right; the others leave a record."""

    def __init__(
        self, machine: Machine, emitter: Emitter, *, answers: Answers, records: CellRecords, watch: SettingsWatch
    ) -> None:
        self.machine, self.emitter = machine, emitter
        self.answers, self.records, self.watch = answers, records, watch

    def before(self, entrants: list[Entrant]) -> list[Entrant]:
        """Run every launch once on poisoned outputs; the wrong ones leave a record."""
        right = []
        for entrant in entrants:
            self.emitter.phase(entrant.name, "check")
            with self.watch(entrant.name):
                results = self._run_once(entrant)
            if self._judge(entrant, results, entrant.expected, "before") and self._is_near_canonical(entrant, results):
                right.append(entrant)
        return right

    def _is_near_canonical(self, entrant: Entrant, results: Sequence[Tensor]) -> bool:
        """How far the product of a backend's own operands is from that of the operands it was given.

        Being right by its own account is not enough: whoever holds noughts and says so would be.
        """
        if not entrant.eight_bit and not any(
            entrant.backend.held_weights(one, entrant.choice) for one in entrant.packed
        ):
            return True
        canonical = self.answers.canonical(entrant.backend.activation_dtype)[0]
        error = check_output(results[0], canonical, 0.0, "before").mean_error
        entrant.canonical_error = error
        if error < _MOST_CANONICAL_ERROR:
            return True
        entrant.reason = f"its product is {error:.3g} off that of the weights it was given"
        self.records.without_samples(entrant.backend, Status.WRONG, entrant.reason, entrant)
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

    def after(self, entrants: list[Entrant]) -> list[Entrant]:
        """Replay what was timed on other activations: whoever cached an answer, or stopped computing, is caught.

        The new activations are the old ones, changed in place; so are the expected answers.
        """
        self.answers.change_activations()
        right = []
        for entrant in entrants:
            self.emitter.phase(entrant.name, "check after timing")
            stopwatch = entrant.stopwatches["kernel"]
            for output in (*entrant.outputs, *(result for result in stopwatch.results if result is not None)):
                poison(output)
            with self.watch(entrant.name):
                for given in entrant.eight_bit:
                    given.quantize()
                self.machine.synchronize()
                stopwatch.sample()
            results = [
                output if own is None else own for own, output in zip(stopwatch.results, entrant.outputs, strict=True)
            ]
            expected = [changed(answer) for answer in entrant.expected]
            if entrant.eight_bit:  # a quantiser need not be symmetric
                expected = self.answers.expected(entrant.backend, entrant.packed, entrant.choice, entrant.eight_bit)
            if self._judge(entrant, results, expected, "after"):
                right.append(entrant)
        return right

    def _judge(self, entrant: Entrant, results: Sequence[Tensor], expected: list[Tensor], when: str) -> bool:
        last = len(results) - 1
        entrant.reason = self._stale_activations(entrant)
        if entrant.reason:
            entrant.reason = f"{entrant.reason} ({when} timing)"
            self.records.without_samples(entrant.backend, Status.WRONG, entrant.reason, entrant)
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
        self.records.without_samples(entrant.backend, Status.WRONG, entrant.reason, entrant)
        return False

    def _stale_activations(self, entrant: Entrant) -> str | None:
        """One sentence when 8-bit activations do not stand for those that were given."""
        given = self.answers.activations(entrant.backend.activation_dtype)
        for activations, quantized in zip(given, entrant.eight_bit, strict=False):
            difference = (quantized.dequantized().float() - activations.float()).abs().mean()
            error = float(difference / activations.float().abs().mean())
            if not error < _MOST_QUANTIZATION_ERROR:
                return f"its 8-bit activations are {error:.3g} off the ones it was given"
        return None

    def _misfit(self, backend: Backend, result: Tensor) -> str | None:
        """One sentence when a result of the backend's own is no [M, N] tensor of its output dtype."""
        wanted = ((self.answers.cell.M, self.answers.cell.N), DTYPES[backend.output_dtype])
        if (tuple(result.shape), result.dtype) == wanted:
            return None
        return f"it gives {result.dtype} {list(result.shape)} where {wanted[1]} {list(wanted[0])} belongs"
