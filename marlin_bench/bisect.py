"""`git bisect` for times: the commit from which a rule of the gate fails, with both ends measured at every step.

First the ends are measured. What is followed from then on are the cells (curves, models) in which GOOD passes the rule
and BAD fails it. At every step GOOD, the commit in question and BAD are measured one after the other, and only cells in
which the ends still differ count: a machine that moved between two steps decides nothing. A commit is bad when any of
them fails, good when all pass; anything else is ambiguous, and when measuring again does not settle it the search
stops. Guessing would lead to a wrong commit with the look of an answer.

A relative rule compares with GOOD as it was measured in the same step. What does not build, crashes or leaves no record
is skipped, as git does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from marlin_bench.bisect_trees import BisectError, Commit, Repository, Search, Tree, UntestableError
from marlin_bench.exit_codes import ExitCode
from marlin_bench.gate import GateError, judge
from marlin_bench.gate_case import Case
from marlin_bench.gate_policy import Policy
from marlin_bench.gate_rules import GateRule, RelativeRule, RightRule
from marlin_bench.plan import plan
from marlin_bench.retry import cells_to_repeat, repeated
from marlin_bench.store import Run, StoreError
from marlin_bench.suite import Suite
from marlin_bench.verdict import GateReport, Outcome, Subject, Verdict

Cells = tuple[str, ...]
Measure = Callable[[Tree, Cells, Path], Run]
"""A built tree, the cells to measure in it, and where the run goes; UntestableError when it leaves none."""
Verdicts = Mapping[Subject, Verdict]


class EndError(RuntimeError):
    """An end of the search that cannot be built or measured (exit 5); one sentence."""


class Standing(StrEnum):
    """What a commit turned out to be."""

    GOOD = "good"
    BAD = "bad"
    SKIPPED = "skip"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True)
class Step:
    """One commit that was tried: what it is, by which verdict, and why."""

    commit: Commit
    standing: Standing
    reason: str
    verdict: Verdict | None = None


@dataclass
class Found:
    """How a search ended; `suspects` are the commits that it could not tell apart."""

    good: Commit
    bad: Commit
    followed: list[Subject] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    first_bad: Commit | None = None
    suspects: list[Commit] = field(default_factory=list)
    log: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """0 when one commit was found, 4 when the search stopped before that."""
        return ExitCode.INCONCLUSIVE if self.first_bad is None else ExitCode.DONE


@dataclass(frozen=True)
class Question:
    """What to search, by which rule, measured how; runs and logs go into folders of `keep`."""

    repository: Repository
    suite: Suite
    rule: GateRule
    measure: Measure
    keep: Path
    scratch: Path
    build: str | None = None
    retries: int = 1
    tell: Callable[[str], None] = lambda _sentence: None


def cells_of(rule: GateRule, suite: Suite) -> Cells:
    """The planned cells that a rule is about; BisectError when it is about none."""
    # a format is known only once a backend was measured
    select = rule.select.model_copy(update={"format": None})
    found = tuple(
        cell.id
        for cell in plan(suite)
        if any(
            select.matches(backend=backend, layer=cell.layer, M=cell.M, group_size=cell.group_size, format="")
            for backend in cell.backends
        )
    )
    if not found:
        raise BisectError(f"the rule selects nothing of suite {suite.name}: correct its `select`")
    return found


def verdicts(rule: GateRule, run: Run, reference: Run) -> Verdicts:
    """What the rule says of each of its subjects, GOOD's run being what a relative rule compares with."""
    baseline = reference if isinstance(rule, RelativeRule) else None
    report = judge(Case(run, Policy("bisect", "bisect", (rule,), None), baseline))
    return {
        replace(verdict.subject, record_id=None): verdict
        for verdict in report.verdicts
        if verdict.subject != Subject()  # of the rule as a whole: nothing selected, nothing to compare with
    }


def _passes(found: Verdict | None) -> bool:
    return found is not None and found.outcome is Outcome.PASSED


def fails(rule: GateRule, found: Verdict | None) -> bool:
    """Whether a verdict says that the rule is broken, rather than that there is nothing to judge."""
    if found is None or found.outcome is not Outcome.FAILED:
        return False
    told = {ExitCode.GATE_FAILED, ExitCode.WRONG_RESULT}
    return found.code in (told | {ExitCode.PARTLY_FAILED} if isinstance(rule, RightRule) else told)


def standing(
    rule: GateRule, followed: list[Subject], good: Verdicts, here: Verdicts, bad: Verdicts
) -> tuple[Standing, str, Verdict | None]:
    """What the commit in question is, why, and the verdict that says so."""
    live = [one for one in followed if _passes(good.get(one)) and fails(rule, bad.get(one))]
    if not live:
        return Standing.AMBIGUOUS, "GOOD and BAD, measured again, no longer differ: the machine moved", None
    found = [here.get(one) for one in live]
    failing = [one for one in found if one is not None and fails(rule, one)]
    if failing:
        worst = max(failing, key=lambda one: one.shortfall)
        return Standing.BAD, worst.reason, worst
    lost = next((one for one in found if one is None or one.outcome is Outcome.FAILED), found[0])
    if lost is None or lost.outcome is Outcome.FAILED:
        return Standing.SKIPPED, "left no record" if lost is None else lost.reason, lost
    open_one = next((one for one in found if one is not None and one.outcome is not Outcome.PASSED), None)
    if open_one is not None:
        return Standing.AMBIGUOUS, open_one.reason, open_one
    nearest = min((one for one in found if one is not None), key=lambda one: one.shortfall)
    return Standing.GOOD, nearest.reason, nearest


class Bisection:
    """One search from its ends to the commit."""

    def __init__(self, question: Question, good: Commit, bad: Commit) -> None:
        self._question = question
        self.found = Found(good, bad)
        self._trees = {
            name: Tree(question.repository, question.scratch / name, question.build)
            for name in ("good", "commit", "bad")
        }

    def search(self) -> Found:
        """Measure the ends, then let git choose commits until one is left or one is ambiguous."""
        found, question = self.found, self._question
        for tree in self._trees.values():
            tree.clone()
        self._build_ends()
        found.followed, cells = self._follow(cells_of(question.rule, question.suite))
        if not found.followed:
            return found
        search = Search(self._trees["commit"], found.good, found.bad)
        while search.turn.trial is not None:
            step = self._try(question.repository.commit(search.turn.trial), cells)
            found.steps.append(step)
            question.tell(f"{step.commit.name}: {step.standing.value} ({_words(step)})")
            if step.standing is Standing.AMBIGUOUS:
                break
            search.mark(step.standing.value)
            found.log = search.log()
        turn = search.turn
        found.first_bad = None if turn.first_bad is None else question.repository.commit(turn.first_bad)
        found.suspects = [question.repository.commit(one) for one in turn.suspects]
        return found

    def _build_ends(self) -> None:
        for name, commit in (("good", self.found.good), ("bad", self.found.bad)):
            tree = self._trees[name]
            try:
                tree.check_out(commit.hash)
                tree.build(self._folder("ends") / f"{name}.build.log")
            except UntestableError as error:
                raise EndError(f"{name.upper()} ({commit.name}) {error}") from error

    def _folder(self, name: str) -> Path:
        folder = self._question.keep / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _follow(self, cells: Cells) -> tuple[list[Subject], Cells]:
        """What the ends differ in, and the cells behind it; nothing followed when the ends are ambiguous."""
        rule, found = self._question.rule, self.found
        opened = ""
        for runs in self._measured(("good", "bad"), cells, self._folder("ends")):
            good, bad = (self._judged_end(name, runs) for name in ("good", "bad"))
            broken = [one for one, verdict in bad.items() if fails(rule, verdict)]
            followed = [one for one in broken if _passes(good.get(one))]
            if followed:
                report = GateReport("", "", "", "", "", [""], [replace(bad[one], rule=0) for one in followed])
                names = ", ".join(one.name for one in followed[:3]) + (", …" if len(followed) > 3 else "")
                self._question.tell(f"GOOD and BAD differ in {len(followed)} of {len(bad)}: {names}")
                return followed, cells_to_repeat(report, cells)
            if any(fails(rule, good.get(one)) for one in broken):
                raise BisectError(f"GOOD ({found.good.name}) fails the rule as BAD does: name an older commit")
            if bad and all(map(_passes, bad.values())):
                raise BisectError(f"BAD ({found.bad.name}) passes the rule: there is nothing to find")
            open_ones = [verdict.reason for side in (good, bad) for verdict in side.values() if not _passes(verdict)]
            opened = open_ones[0] if open_ones else "the rule says nothing of them"
        found.steps.append(Step(found.bad, Standing.AMBIGUOUS, f"GOOD and BAD cannot be told apart: {opened}"))
        return [], ()

    def _judged_end(self, name: str, runs: Mapping[str, Run]) -> Verdicts:
        try:
            return verdicts(self._question.rule, runs[name], runs["good"])
        except GateError as error:
            raise EndError(f"{name.upper()} cannot be judged: {error}") from error

    def _measured(self, names: tuple[str, ...], cells: Cells, folder: Path) -> Iterator[dict[str, Run]]:
        """The runs of these trees, then of one measurement more at each retry, pooled."""
        runs: dict[str, Run] = {}
        for attempt in range(self._question.retries + 1):
            for name in names:
                try:
                    again = self._question.measure(self._trees[name], cells, folder / f"{name}{attempt or ''}")
                except UntestableError as error:
                    if name == "commit":
                        raise
                    raise EndError(f"{name.upper()} {error}") from error
                runs[name] = repeated(runs[name], again.records) if name in runs else again
            yield runs

    def _try(self, commit: Commit, cells: Cells) -> Step:
        """Build one commit, measure it between the two ends, and say what it is."""
        rule, folder = self._question.rule, self._folder(f"{len(self.found.steps) + 1:02}_{commit.hash[:10]}")
        step = Step(commit, Standing.AMBIGUOUS, "nothing was measured")
        try:
            self._trees["commit"].build(folder / "build.log")
            for runs in self._measured(("good", "commit", "bad"), cells, folder):
                good, bad = (self._judged_end(name, runs) for name in ("good", "bad"))
                here = verdicts(rule, runs["commit"], runs["good"])
                step = Step(commit, *standing(rule, self.found.followed, good, here, bad))
                if step.standing is not Standing.AMBIGUOUS:
                    break
        except (UntestableError, GateError, StoreError) as error:
            return Step(commit, Standing.SKIPPED, str(error))
        return step


def _words(step: Step) -> str:
    measured = "" if step.verdict is None else f"{step.verdict.subject.name} {step.verdict.measured}"
    return ", ".join(part for part in (measured, step.reason) if part)
