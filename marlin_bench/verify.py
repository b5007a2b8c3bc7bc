"""The cells of a suite for right answers only: nothing is timed and nothing is stored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from marlin_bench.device import slug
from marlin_bench.errand import Listener, RunContext
from marlin_bench.executor import Executor, LocalExecutor
from marlin_bench.open_devices import open_devices
from marlin_bench.plan import Cell, Selection, selected_cells
from marlin_bench.record import Check, Record
from marlin_bench.suite import Suite
from marlin_bench.sweep import backend_facts


@dataclass(frozen=True)
class Verification:
    """One backend's answer in one cell, where only correctness was asked for."""

    cell: Cell
    backend: str
    check: Check | None
    refusal: Record | None


def verify_suite(
    suite: Suite, *, selection: Selection, devices: str | None, executor: Executor | None = None
) -> Iterator[Verification]:
    """Check every backend of the selected cells for right answers, timing nothing and storing nothing."""
    cells = selected_cells(suite, selection)
    runner = open_devices(suite, devices, executor or LocalExecutor())[0]
    context = RunContext(
        run="verify",
        device=slug(runner.session.ready.environment.device_name),
        sampling=suite.sampling,
        clock_origin=time.monotonic(),
        effort=suite.tune,
        verify_only=True,
    )
    try:
        for cell in cells:
            found: list[Verification] = []
            listener = Listener(
                phase=lambda _backend, _phase: None,
                record=lambda record, cell=cell, found=found: found.append(  # type: ignore[misc]
                    Verification(cell, record.backend, None, record)
                ),
                verified=lambda backend, check, cell=cell, found=found: found.append(  # type: ignore[misc]
                    Verification(cell, backend, check, None)
                ),
            )
            runner.run(cell, backend_facts(cell), context, listener)
            yield from found
    finally:
        runner.close()
