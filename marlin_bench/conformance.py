"""What every backend must keep to, as checks that can be run on any one: `pytest --marlin-backend package:Class`.

Correctness over shapes goes through the same measuring as a suite, so that poisoned outputs, changed activations,
rotated weights and the physical floor catch what they catch there. The other checks look at what measuring takes for
granted: that a backend reads its operands and only those, writes its output and nothing else, stays on the stream it is
given, and counts its weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from marlin_bench.backends import load_backend, register
from marlin_bench.backends.protocol import Backend, Choice, EightBitBackend, Launch, Missing, Packed
from marlin_bench.check import check_output, fault, poison
from marlin_bench.device import slug
from marlin_bench.entrant import DTYPES, Job, LayerCache
from marlin_bench.machine import Machine
from marlin_bench.measure import measure_cell
from marlin_bench.operands import LayerKey, WeightSource, expected_product, make_activations, make_weights
from marlin_bench.plan import Cell, cell_id
from marlin_bench.problem import Problem
from marlin_bench.record import Block, Check, Flag, Record, Status, TimerName
from marlin_bench.suite_format import Sampling

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SEED = 11
_GUARD_ROWS = 4
_LAUNCHES = 20
_LEAST_STORED = 0.99  # of the bits that the format says; a table of scales may be rounded up, never down

SHAPES = (
    Problem(1, 256, 512, 128),
    Problem(3, 512, 256, 128),
    Problem(16, 1024, 1024, 128),
    Problem(17, 384, 640, 128),
    Problem(64, 256, 1024, 128),
    Problem(65, 768, 512, 128),
    Problem(128, 1024, 512, 128),
    Problem(300, 512, 1024, 128),
    Problem(16, 512, 1024, 64),
    Problem(16, 512, 1024, None),
    Problem(1, 4096, 4096, 128),
    Problem(130, 4096, 4096, 128),
)


class NonconformingError(AssertionError):
    """What the backend does against the protocol, in one sentence."""


class NotApplicableError(Exception):
    """Why a check has nothing to say about the backend here, in one sentence."""


def find_backend(name: str) -> Backend:
    """A registered backend by name, or the class that `package.module:Class` names; ValueError for what is neither."""
    module, colon, attribute = name.partition(":")
    if not colon:
        return load_backend(name)
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise ValueError(f"{name} is no class derived from marlin_bench.backends.protocol.Backend")
    return load_backend(register(found).name)


@dataclass(frozen=True)
class Subject:
    """A backend on a device."""

    backend: Backend
    machine: Machine


@dataclass
class Prepared:
    """One product of the subject, ready to be launched, with the float64 answer it must give."""

    packed: Packed
    activations: Tensor
    output: Tensor
    launch: Launch
    expected: Callable[[], Tensor]

    def run(self) -> Tensor:
        """Launch once; what came out."""
        own = self.launch()
        return self.output if own is None else own


def first_supported(subject: Subject, *, least_batch: int = 1) -> Problem:
    """The first of the shapes that the backend takes."""
    for problem in SHAPES:
        if least_batch <= problem.M and subject.backend.unsupported(problem, subject.machine.traits) is None:
            return problem
    raise NotApplicableError("it supports none of the shapes of this test")


def prepare(subject: Subject, problem: Problem, output: Tensor | None = None) -> Prepared:
    """Operands, packed weights and a launch for `problem`."""
    backend, device = subject.backend, subject.machine.torch_device
    weights = make_weights(LayerKey(problem.K, problem.N, problem.group_size, _SEED), 0, device)
    packed = backend.pack(weights)
    dtype = DTYPES[backend.activation_dtype]
    activations = make_activations(_SEED, problem.M, problem.K, 0, dtype, device)
    if output is None:
        output = torch.empty(problem.M, problem.N, dtype=DTYPES[backend.output_dtype], device=device)
    choice = first_choice(subject, problem, packed, activations, output)
    source = WeightSource(weights, backend.held_weights(packed, choice))

    def expected() -> Tensor:
        if not isinstance(backend, EightBitBackend):
            return expected_product(activations, source)
        given = backend.quantize(activations)
        given.quantize()
        return expected_product(given.dequantized(), source)

    return Prepared(packed, activations, output, backend.launch(packed, activations, output, choice), expected)


def first_choice(subject: Subject, problem: Problem, packed: Packed, activations: Tensor, output: Tensor) -> Choice:
    """What it runs with before anything is searched for."""
    candidates = subject.backend.candidates(problem, subject.machine.traits, "quick")
    if candidates:
        return candidates[0]
    return subject.backend.tune([packed], [activations], [output], "quick")


def _must_be_right(subject: Subject, result: Tensor, expected: Tensor, when: str) -> None:
    subject.machine.synchronize()
    sentence = fault(check_output(result, expected, subject.backend.tolerance, "before"))
    if sentence is not None:
        raise NonconformingError(f"{when}: {sentence}")


# -- the checks --------------------------------------------------------------------------------------------------------


def declares_itself(subject: Subject) -> None:
    """Name, summary, version, dtypes and what it says about problems have the types that records and tables expect."""
    backend, problem = subject.backend, SHAPES[0]
    if not _NAME.fullmatch(backend.name):
        raise NonconformingError(f"the name '{backend.name}' is not lower case letters, digits and underscores")
    for attribute in ("summary", "version"):
        value = getattr(backend, attribute)
        text = value() if callable(value) else value
        if not (isinstance(text, str) and text.strip()):
            raise NonconformingError(f"its {attribute} is {text!r} where a text belongs")
    for attribute in ("activation_dtype", "output_dtype"):
        if getattr(backend, attribute) not in DTYPES:
            raise NonconformingError(f"its {attribute} '{getattr(backend, attribute)}' is none of {', '.join(DTYPES)}")
    missing = backend.missing()
    if missing is not None and not (isinstance(missing, Missing) and missing.reason and missing.remedy):
        raise NonconformingError("missing() gives no reason with a remedy")
    sentence = backend.unsupported(problem, subject.machine.traits)
    if sentence is not None and not (isinstance(sentence, str) and sentence.strip()):
        raise NonconformingError("unsupported() gives neither None nor a sentence")
    for choice in backend.candidates(problem, subject.machine.traits, "quick"):
        if not all(isinstance(text, str) for pair in choice.items() for text in pair):
            raise NonconformingError(f"a candidate holds other things than texts: {dict(choice)!r}")


def counts_its_weights(subject: Subject) -> None:
    """The tensors that `pack` names hold as many bits a weight as its format says: nothing is hidden elsewhere."""
    problem = first_supported(subject)
    packed = prepare(subject, problem).packed
    stored = packed.nbytes * 8 / (problem.K * problem.N)
    promised = subject.backend.format(problem).bits_per_weight(problem.K)
    if stored < _LEAST_STORED * promised:
        raise NonconformingError(f"its tensors hold {stored:.2f} bits a weight, its format {promised:.2f}")


def leaves_its_operands_alone(subject: Subject) -> None:
    """A launch changes neither the activations nor the packed weights, and gives the same the second time."""
    prepared = prepare(subject, first_supported(subject))
    activations = prepared.activations.clone()
    tensors = {name: tensor.clone() for name, tensor in prepared.packed.tensors.items()}
    expected = prepared.expected()
    for turn in ("the first launch", "the second launch"):
        poison(prepared.output)
        _must_be_right(subject, prepared.run(), expected, turn)
    if not _same_bits(activations, prepared.activations):
        raise NonconformingError("a launch changes its activations")
    for name, tensor in tensors.items():
        if not _same_bits(tensor, prepared.packed.tensors[name]):
            raise NonconformingError(f"a launch changes the packed tensor '{name}'")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def follows_new_activations(subject: Subject) -> None:
    """Other activations at the same address give their own product: nothing is remembered."""
    problem = first_supported(subject, least_batch=3)
    prepared = prepare(subject, problem)
    prepared.run()
    subject.machine.synchronize()
    prepared.activations.copy_(prepared.activations.roll(1, 0).neg_())
    poison(prepared.output)
    _must_be_right(subject, prepared.run(), prepared.expected(), "with other activations")


def keeps_copies_apart(subject: Subject) -> None:
    """A copy of the packed weights lies elsewhere and still computes when the original is overwritten."""
    problem = first_supported(subject)
    prepared = prepare(subject, problem)
    copied = prepared.packed.copy()
    addresses = {tensor.data_ptr() for tensor in prepared.packed.tensors.values()}
    if any(tensor.data_ptr() in addresses for tensor in copied.tensors.values()):
        raise NonconformingError("a copy of the packed weights shares memory with the original")
    expected = prepared.expected()  # before the original is lost
    choice = first_choice(subject, problem, copied, prepared.activations, prepared.output)
    launch = subject.backend.launch(copied, prepared.activations, prepared.output, choice)
    if prepared.packed.remake is None:
        for tensor in prepared.packed.tensors.values():
            tensor.zero_()
    poison(prepared.output)
    own = launch()
    _must_be_right(subject, prepared.output if own is None else own, expected, "from a copy of the weights")


def writes_only_its_output(subject: Subject) -> None:
    """Rows before and after the output stay untouched."""
    problem = first_supported(subject, least_batch=3)
    dtype = DTYPES[subject.backend.output_dtype]
    room = torch.empty(problem.M + 2 * _GUARD_ROWS, problem.N, dtype=dtype, device=subject.machine.torch_device)
    prepared = prepare(subject, problem, room[_GUARD_ROWS : _GUARD_ROWS + problem.M])
    poison(room)
    before = room.clone()
    prepared.run()
    subject.machine.synchronize()
    for rows in (slice(0, _GUARD_ROWS), slice(_GUARD_ROWS + problem.M, None)):
        if not _same_bits(room[rows], before[rows]):
            raise NonconformingError("a launch writes outside its output")


def stays_on_the_stream(subject: Subject) -> None:
    """Launched on another stream, it waits for what is queued there, and is done when that stream is."""
    if subject.machine.traits.kind != "cuda":
        raise NotApplicableError("a CPU has no streams")
    problem = first_supported(subject, least_batch=3)
    prepared = prepare(subject, problem)
    prepared.run()
    fresh = prepared.activations.roll(1, 0).neg_()
    ballast = torch.randn(4096, 4096, device=subject.machine.torch_device)
    subject.machine.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(8):
            ballast = torch.mm(ballast, ballast).clamp_(-1, 1)
        prepared.activations.copy_(fresh)
        poison(prepared.output)
        result = prepared.run().clone()
    stream.synchronize()
    _must_be_right(subject, result, prepared.expected(), "on another stream")


def keeps_its_memory(subject: Subject) -> None:
    """Launching again and again allocates nothing that stays."""
    if subject.machine.traits.kind != "cuda":
        raise NotApplicableError("a CPU's memory is not counted")
    prepared = prepare(subject, first_supported(subject))
    prepared.run()
    subject.machine.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(_LAUNCHES):
        prepared.run()
    subject.machine.synchronize()
    grown = torch.cuda.memory_allocated() - before
    if grown > 0:
        raise NonconformingError(f"{_LAUNCHES} launches leave {grown} bytes behind")


CHECKS: Sequence[Callable[[Subject], None]] = (
    declares_itself,
    counts_its_weights,
    leaves_its_operands_alone,
    follows_new_activations,
    keeps_copies_apart,
    writes_only_its_output,
    stays_on_the_stream,
    keeps_its_memory,
)


# -- right answers, measured -------------------------------------------------------------------------------------------


class _Kept:
    """The emitter of a measurement that keeps the records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def phase(self, backend: str, phase: str) -> None:
        """Not shown."""

    def block(self, timer: TimerName, backend: str, block: Block) -> None:
        """Kept in the record."""

    def verified(self, backend: str, check: Check) -> None:
        """Not asked for."""

    def record(self, record: Record) -> None:
        """A finished record."""
        self.records.append(record)


def measured(machine: Machine, name: str, problem: Problem, sampling: Sampling) -> Record:
    """The record of one backend alone on one problem, with the suite's operands, checks and rotation."""
    M, N, K, group_size = problem.M, problem.N, problem.K, problem.group_size
    layer = f"{K}x{N}"
    cell = Cell(
        cell_id(layer, group_size, M), "pytest", layer, M, N, K, group_size, (name,), seed=0, timers=("kernel",)
    )
    job = Job(cell, (name,), (), sampling, run="pytest", device=slug(machine.traits.name))
    kept = _Kept()
    measure_cell(job, machine, LayerCache(), kept)
    return kept.records[0]


def computes(subject: Subject, problem: Problem) -> None:
    """Right before and after timing on rotated weights, no faster than physics, and no setting of torch changed."""
    sampling = Sampling(min_blocks=6, max_blocks=6, block_seconds=0.0005, cell_seconds=0.05)
    record = measured(subject.machine, subject.backend.name, problem, sampling)
    if record.status in {Status.UNSUPPORTED, Status.MISSING}:
        raise NotApplicableError(record.reason or record.status.value)
    if record.status is not Status.OK:
        raise NonconformingError(f"{record.status.value}: {record.reason}")
    if Flag.CHANGED_SETTINGS in record.flags:
        raise NonconformingError("it changes settings of torch that the whole process shares")
