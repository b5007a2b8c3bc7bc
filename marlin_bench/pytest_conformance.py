"""The conformance checks of a backend as tests: what `pytest --marlin-backend package:Class` collects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from marlin_bench.backends.protocol import Backend
    from marlin_bench.conformance import Subject
    from marlin_bench.machine import Machine


_LARGE_FOR_A_CPU = 1 << 20  # weights
_ROTATED_BYTES_ON_A_CPU = 1 << 18


class ConformanceCollector(pytest.File):
    """The checks of every backend that was named."""

    def collect(self) -> Iterator[pytest.Item]:
        """One test a check and one a shape."""
        from marlin_bench.backends import UnknownBackendError
        from marlin_bench.conformance import CHECKS, SHAPES, computes, find_backend

        for name in self.config.getoption("--marlin-backend"):
            try:
                backend = find_backend(name)
            except (ValueError, UnknownBackendError) as error:
                raise self.CollectError(f"--marlin-backend {name}: {error}") from error
            for check in CHECKS:
                yield self._item(backend, check.__name__, check)
            for problem in SHAPES:
                if backend.device == "cpu" and problem.K * problem.N > _LARGE_FOR_A_CPU:
                    continue
                group = "K" if problem.group_size is None else problem.group_size
                shape = f"M{problem.M}-N{problem.N}-K{problem.K}-g{group}"
                yield self._item(backend, f"computes-{shape}", partial(computes, problem=problem))

    def _item(self, backend: Backend, title: str, check: Callable[[Subject], None]) -> pytest.Item:
        item: pytest.Item = ConformanceItem.from_parent(
            self, name=f"{backend.name}[{title}]", backend=backend, check=check
        )
        return item


class ConformanceItem(pytest.Item):
    """One check of one backend: passed, failed with a sentence, or skipped with one."""

    def __init__(self, *, backend: Backend, check: Callable[[Subject], None], **fields: Any) -> None:
        super().__init__(**fields)
        self.backend, self.check = backend, check

    def runtest(self) -> None:
        """Run the check on the backend's device."""
        from marlin_bench.conformance import NonconformingError, NotApplicableError, Subject

        machine = _machine(self.backend.device)
        missing = self.backend.missing()
        if missing is not None:
            pytest.skip(f"{missing.reason}: {missing.remedy}")
        try:
            self.backend.load()
            self.check(Subject(self.backend, machine))
        except NotApplicableError as error:
            pytest.skip(str(error))
        except NonconformingError as error:
            pytest.fail(str(error), pytrace=False)
        finally:
            machine.release_memory()

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the test stands in reports."""
        return self.path, None, self.name


def _machine(device: str) -> Machine:
    """The device that a backend runs on, or a skipped test."""
    from marlin_bench.pytest_plugin import unavailable

    try:
        import torch
    except ImportError:
        unavailable("torch is not installed")
        raise
    if device == "cuda" and not torch.cuda.is_available():
        unavailable("torch sees no CUDA device")
    return _opened(device)


@cache
def _opened(device: str) -> Machine:
    from marlin_bench.machine import CpuMachine, open_machine

    machine = open_machine(device)
    if isinstance(machine, CpuMachine):  # rotating past a whole L3 takes a CPU minutes, and no time is asked for here
        machine.traits = replace(machine.traits, l2_bytes=min(machine.traits.l2_bytes, _ROTATED_BYTES_ON_A_CPU))
    return machine
