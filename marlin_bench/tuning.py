"""Before timing: which configuration a backend runs with, found within bounds, once, and told in the record.

A backend either decides for itself (`tune`) or names candidates. Candidates are timed here, the same way for all, until
the time of the suite's `tune: quick` or `full` is spent; the fastest is kept on disk under everything that it depends
on, so that the next run of the same code on the same device starts with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marlin_bench.backends.protocol import Backend, Choice, DeviceTraits, Effort
from marlin_bench.cache import cache_folder
from marlin_bench.problem import Problem
from marlin_bench.record import Tuning

SEARCH_SECONDS: Mapping[Effort, float] = {"quick": 3.0, "full": 60.0}
"""How long the candidates of one backend in one cell may be tried; one that has begun is finished."""


@dataclass(frozen=True)
class Question:
    """Everything that a choice depends on."""

    backend: str
    version: str
    device: str
    problem: Problem
    effort: Effort
    candidates: Sequence[Choice]

    @property
    def path(self) -> Path:
        """Where its answer is kept."""
        facts = [self.backend, self.version, self.device, repr(self.problem), self.effort]
        key = json.dumps([*facts, [dict(candidate) for candidate in self.candidates]], sort_keys=True)
        return cache_folder("tuning") / f"{self.backend}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _remembered(question: Question) -> Choice | None:
    """The kept answer, where it is there and one of the candidates."""
    try:
        kept = json.loads(question.path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not question.candidates:
        return kept if isinstance(kept, dict) and all(isinstance(value, str) for value in kept.values()) else None
    return kept if kept in [dict(candidate) for candidate in question.candidates] else None


def _keep(question: Question, choice: Choice) -> None:
    """Store an answer; a cache that cannot be written only costs the search again."""
    try:
        question.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=question.path.parent, delete=False, encoding="utf-8") as file:
            json.dump(dict(choice), file)
        os.replace(file.name, question.path)
    except OSError:
        return


def search(
    question: Question,
    seconds_of: Callable[[Choice], float],
    *,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Choice, Tuning]:
    """The fastest candidate by `seconds_of`, which raises RuntimeError or ValueError for one that cannot run.

    Raises RuntimeError, with the last reason, when no candidate runs.
    """
    began = clock()
    kept = _remembered(question)
    if kept is not None:
        return kept, Tuning(effort=question.effort, seconds=0.0, cached=True)
    times: list[tuple[float, int]] = []
    reasons: list[str] = []
    for index, candidate in enumerate(question.candidates):
        if times and clock() - began >= limit_s:
            break
        try:
            times.append((seconds_of(candidate), index))
        except (RuntimeError, ValueError) as error:
            reasons.append(str(error))
    if not times:
        raise RuntimeError(f"none of its {len(reasons)} configurations runs; the last one: {reasons[-1]}")
    choice = question.candidates[min(times)[1]]
    _keep(question, choice)
    tried = Tuning(effort=question.effort, seconds=clock() - began, tried=len(times), rejected=len(reasons))
    return dict(choice), tried


def ask(question: Question, tune: Callable[[], Choice], *, is_kept: bool) -> tuple[Choice, Tuning]:
    """What a backend settles on itself; `is_kept`: asked once, then known from the disk."""
    began = time.monotonic()
    kept = _remembered(question) if is_kept else None
    if kept is not None:
        return kept, Tuning(effort=question.effort, seconds=0.0, cached=True)
    choice = tune()
    if is_kept:
        _keep(question, choice)
    return choice, Tuning(effort=question.effort, seconds=time.monotonic() - began)


def question_of(backend: Backend, problem: Problem, device: DeviceTraits, effort: Effort) -> Question:
    """What to search for; without candidates where the backend decides for itself."""
    candidates = backend.candidates(problem, device, effort)
    return Question(backend.name, backend.version(), device.name, problem, effort, candidates)
