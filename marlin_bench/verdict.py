"""What a gate says: one verdict for each rule and thing it judged, and the code that they end with together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from marlin_bench.exit_codes import ExitCode, deciding


class Outcome(StrEnum):
    """How a rule came out for one cell."""

    FAILED = "fail"
    INCONCLUSIVE = "inconclusive"
    PASSED = "pass"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Subject:
    """What was judged: a record, a curve over M (no M), a model (no layer), or a rule as a whole (nothing)."""

    cell: str | None = None
    backend: str | None = None
    layer: str | None = None
    M: int | None = None
    record_id: str | None = None

    @property
    def name(self) -> str:
        """How people call it."""
        return " ".join(part for part in (self.cell or self.layer, self.backend) if part) or "the whole rule"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One rule on one subject.

    `value` and its bounds are in the unit of `limit` (a share, a speed-up, an M, a ratio of times); `measured`,
    `required` and `reason` say it in words, `next_command` what to run now. `code` is what it means to the shell.
    """

    rule: int
    kind: str
    rule_text: str
    outcome: Outcome
    subject: Subject
    measured: str = ""
    required: str = ""
    reason: str = ""
    next_command: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    code: ExitCode = ExitCode.DONE
    is_published: bool = False

    @property
    def shortfall(self) -> float:
        """How far the value is from its limit, relative; 0 where there is no such number."""
        if self.value is None or self.limit is None or not math.isfinite(self.value) or self.limit == 0:
            return 0.0
        return abs(self.value - self.limit) / self.limit


_GRAVITY = {
    Outcome.FAILED: 1,
    Outcome.INCONCLUSIVE: 2,
    Outcome.PASSED: 3,
    Outcome.NOT_APPLICABLE: 4,
}


def _gravity(verdict: Verdict) -> tuple[int, float]:
    """Wrong answers first, then failures by how far they fall short, the narrowest passes before the clear ones."""
    place = 0 if verdict.code is ExitCode.WRONG_RESULT else _GRAVITY[verdict.outcome]
    return place, -verdict.shortfall if verdict.outcome is Outcome.FAILED else verdict.shortfall


@dataclass(frozen=True)
class GateReport:
    """Everything a gate found on one run."""

    policy: str
    run: str
    folder: str
    device: str
    commit: str
    rules: Sequence[str]
    verdicts: Sequence[Verdict]
    baseline: str | None = None
    strict: bool = False
    notes: Sequence[str] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        """Verdicts of one outcome."""
        return sum(verdict.outcome is outcome for verdict in self.verdicts)

    @property
    def by_severity(self) -> list[Verdict]:
        """The verdicts, the gravest first."""
        return sorted(self.verdicts, key=_gravity)

    @property
    def is_judged_on_published(self) -> bool:
        """Whether any verdict stands on a quoted value."""
        return any(verdict.is_published and verdict.outcome is not Outcome.NOT_APPLICABLE for verdict in self.verdicts)

    @property
    def exit_code(self) -> ExitCode:
        """The one code to end with (DESIGN section 5)."""
        codes = [verdict.code for verdict in self.verdicts if verdict.outcome is Outcome.FAILED]
        if any(self._is_undecided(rule) for rule in range(len(self.rules))):
            codes.append(ExitCode.INCONCLUSIVE)
        if self.strict and self.count(Outcome.INCONCLUSIVE):
            codes.append(ExitCode.INCONCLUSIVE)
        if self.count(Outcome.NOT_APPLICABLE) == len(self.verdicts):
            codes.append(ExitCode.NOTHING_MEASURED)
        return deciding(codes)

    def _is_undecided(self, rule: int) -> bool:
        """Whether a rule has verdicts that were asked for evidence and not one that is conclusive."""
        found = {verdict.outcome for verdict in self.verdicts if verdict.rule == rule}
        return Outcome.INCONCLUSIVE in found and not found & {Outcome.PASSED, Outcome.FAILED}

    @property
    def summary(self) -> str:
        """`8 passed, 1 failed, 0 inconclusive`, and what else must be said."""
        counts = (
            f"{self.count(Outcome.PASSED)} passed, {self.count(Outcome.FAILED)} failed, "
            f"{self.count(Outcome.INCONCLUSIVE)} inconclusive"
        )
        idle = self.count(Outcome.NOT_APPLICABLE)
        extra = f", {idle} not applicable" if idle else ""
        quoted = ", judged on published values" if self.is_judged_on_published else ""
        return counts + extra + quoted

    @property
    def ending(self) -> str:
        """The exit code in words."""
        return _ENDINGS[self.exit_code]


_ENDINGS = {
    ExitCode.DONE: "gate passed",
    ExitCode.GATE_FAILED: "gate failed: slower than the policy",
    ExitCode.WRONG_RESULT: "gate failed: a wrong result",
    ExitCode.INCONCLUSIVE: "gate inconclusive",
    ExitCode.NOTHING_MEASURED: "gate failed: nothing to judge where a rule asks for something",
    ExitCode.PARTLY_FAILED: "gate failed: a backend crashed or timed out",
}
