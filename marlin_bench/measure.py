"""One cell: all its backends prepared, checked, timed in randomised blocks, and checked again."""

from __future__ import annotations

from marlin_bench.blocks import Timing
from marlin_bench.cell_answers import Answers
from marlin_bench.cell_records import CellRecords
from marlin_bench.correctness import Correctness
from marlin_bench.entrant import Emitter, Job, LayerCache
from marlin_bench.machine import Machine
from marlin_bench.preparation import Preparation
from marlin_bench.torch_state import SettingsWatch


def measure_cell(job: Job, machine: Machine, cache: LayerCache, emitter: Emitter) -> float:
    """Measure one cell; its records go to `emitter`. Gives the seconds spent inside timed work."""
    watch = SettingsWatch()
    answers = Answers(job.cell, machine, cache)
    records = CellRecords(job, machine, emitter, watch.changed)
    preparation = Preparation(job, machine, cache, emitter, answers=answers, records=records, watch=watch)
    correctness = Correctness(machine, emitter, answers=answers, records=records, watch=watch)

    entrants = correctness.before(preparation.prepare())
    if job.verify_only:
        for entrant in entrants:
            emitter.verified(entrant.name, entrant.checks[-1])
        return 0.0
    timing = Timing(job, machine, emitter, watch)
    timing.time(entrants)
    records.finish(correctness.after(entrants), timing.power_w)
    return timing.timed_s
