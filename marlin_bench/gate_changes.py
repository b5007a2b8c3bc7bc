"""Rules that ask for evidence: right answers, and no cell slower than in the baseline run."""

from __future__ import annotations

import shlex

from marlin_bench.compare import CellChange, compare, unlike
from marlin_bench.exit_codes import ExitCode
from marlin_bench.gate_case import Case, doubt, selects, subject_of
from marlin_bench.gate_policy import rule_text
from marlin_bench.gate_rules import RelativeRule, RightRule
from marlin_bench.judgement import Evidence, Judgement
from marlin_bench.record import Origin, Record, Status
from marlin_bench.units import format_percent
from marlin_bench.verdict import Outcome, Subject, Verdict

LARGEST_TOLERANCE = 0.05
"""Noise may widen a tolerance up to here; a cell that needs more says nothing."""
_WRONG = {Status.WRONG, Status.IMPOSSIBLE}
_BROKEN = {Status.CRASHED, Status.TIMEOUT, Status.OUT_OF_MEMORY}


def _right_outcome(record: Record) -> tuple[Outcome, str, ExitCode]:
    """What a record's status means where right answers are asked for."""
    reason = record.reason or record.status.value
    if record.status is Status.OK:
        return Outcome.PASSED, "", ExitCode.DONE
    if record.status in _WRONG:
        return Outcome.FAILED, reason, ExitCode.WRONG_RESULT
    if record.status in _BROKEN:
        return Outcome.FAILED, reason, ExitCode.PARTLY_FAILED
    if record.status is Status.MISSING:
        return Outcome.INCONCLUSIVE, f"not installed: {reason}", ExitCode.DONE
    return Outcome.NOT_APPLICABLE, f"unsupported: {reason}", ExitCode.DONE


def judge_right(case: Case, index: int, rule: RightRule) -> list[Verdict]:
    """Every selected record's status, under every timer; a quotation was never checked here."""
    found = []
    chosen = [record for record in case.run.records if selects(rule.select, record)]
    if case.is_published:
        reason = "published values were not checked here"
        return [_verdict(index, rule, Subject(), Outcome.NOT_APPLICABLE, reason, chosen[0])] if chosen else []
    for record in chosen:
        outcome, reason, code = _right_outcome(record)
        hesitation = _locked_doubt(record, rule)
        if hesitation is not None and outcome is Outcome.PASSED:
            outcome, reason = Outcome.INCONCLUSIVE, hesitation
        found.append(
            Verdict(
                rule=index,
                kind=rule.rule,
                rule_text=rule_text(rule),
                outcome=outcome,
                subject=subject_of(record),
                measured=record.status.value,
                required="ok",
                reason=reason,
                next_command=case.command("verify", record) if outcome is Outcome.FAILED else "",
                code=code,
            )
        )
    return found


def _locked_doubt(record: Record, rule: RightRule) -> str | None:
    """An answer is right at any clock and under any throttle; only a rule that asks for locked clocks hesitates."""
    return doubt(record, rule) if rule.clocks == "locked" and not record.clocks_locked else None


def judge_relative(case: Case, index: int, rule: RelativeRule) -> list[Verdict]:
    """Each selected cell against the baseline run."""
    chosen = [record for record in case.run.records if selects(rule.select, record)]
    if case.is_published:
        return [
            _verdict(
                index, rule, subject_of(record), Outcome.NOT_APPLICABLE, "published values have no samples", record
            )
            for record in chosen
        ]
    if case.baseline is None:
        reason = "there is no baseline run: give --baseline RUN, or accept one with `marlin-bench baseline set`"
        return [_verdict(index, rule, Subject(), Outcome.INCONCLUSIVE, reason, None)] if chosen else []
    differences = unlike(case.baseline.meta, case.run.meta)
    if differences:
        reason = f"the baseline is unlike: {'; '.join(differences)}"
        return [_verdict(index, rule, Subject(), Outcome.INCONCLUSIVE, reason, None)] if chosen else []
    changes = compare(
        case.baseline.records,
        case.run.records,
        rule,
        noise=case.noise,
        chosen=lambda record: selects(rule.select, record) and not (record.isolated and record.baseline),
    )
    return [_relative_verdict(case, index, rule, change) for change in changes]


def _is_noise(rule: RelativeRule, seen: Evidence) -> bool:
    """Whether the tolerance is what it is because of noise, rather than by the policy's own numbers."""
    return rule.noise * seen.noise >= seen.tolerance * (1 - 1e-9)


def _relative_verdict(case: Case, index: int, rule: RelativeRule, change: CellChange) -> Verdict:
    record, seen = change.named, change.evidence
    subject = subject_of(record)
    if seen is None:
        return _invalid(case, index, rule, change)
    outcome = {
        Judgement.WORSE: Outcome.FAILED,
        Judgement.AMBIGUOUS: Outcome.INCONCLUSIVE,
    }.get(change.judgement, Outcome.PASSED)
    reason = change.reason
    if outcome is Outcome.PASSED and seen.tolerance > max(rule.relative, LARGEST_TOLERANCE) and _is_noise(rule, seen):
        share = format_percent(seen.tolerance, 1)
        outcome, reason = Outcome.INCONCLUSIVE, f"too noisy: only a change beyond {share} would show"
    hesitation = next((found for side in (change.old, change.new) if side and (found := doubt(side, rule))), None)
    if hesitation is not None:
        outcome, reason = Outcome.INCONCLUSIVE, hesitation
    if seen.baseline_part is not None and not seen.baseline_part.within(seen.tolerance):
        library = "the same library" if seen.baseline_is_same else "another version"
        moved = seen.baseline_part.ratio.value - 1
        reason += f"; {seen.baseline} itself changed by {100 * moved:+.1f}% ({library})"
    ratio = seen.deciding.ratio
    return Verdict(
        rule=index,
        kind=rule.rule,
        rule_text=rule_text(rule),
        outcome=outcome,
        subject=subject,
        measured=f"{100 * (ratio.value - 1):+.1f}% [{100 * (ratio.low - 1):+.1f}, {100 * (ratio.high - 1):+.1f}]",
        required=f"at most +{format_percent(seen.tolerance, 1)}",
        reason=reason,
        next_command=""
        if outcome is Outcome.PASSED
        else shlex.join(["marlin-bench", "gate", case.policy.source, str(case.run.folder), "--retry", "2"])
        if outcome is Outcome.INCONCLUSIVE
        else case.command("run", record),
        value=ratio.value,
        low=ratio.low,
        high=ratio.high,
        limit=1 + seen.tolerance,
        code=ExitCode.GATE_FAILED if outcome is Outcome.FAILED else ExitCode.DONE,
    )


def _invalid(case: Case, index: int, rule: RelativeRule, change: CellChange) -> Verdict:
    """Two records without a common measure: what was there and is gone, or is wrong now, is a failure."""
    record = change.named
    if change.old is None or change.old.status is not Status.OK:  # nothing to be slower than
        return _verdict(index, rule, subject_of(record), Outcome.NOT_APPLICABLE, change.reason, record)
    status = None if change.new is None else change.new.status
    if status is Status.OK:
        return _verdict(index, rule, subject_of(record), Outcome.INCONCLUSIVE, change.reason, record)
    code = (
        ExitCode.WRONG_RESULT
        if status in _WRONG
        else ExitCode.PARTLY_FAILED
        if status in _BROKEN
        else ExitCode.NOTHING_MEASURED
    )
    verb = "verify" if status in _WRONG else "run"
    return _verdict(
        index, rule, subject_of(record), Outcome.FAILED, change.reason, record, case.command(verb, record), code
    )


def _verdict(
    index: int,
    rule: RelativeRule | RightRule,
    subject: Subject,
    outcome: Outcome,
    reason: str,
    record: Record | None,
    next_command: str = "",
    code: ExitCode = ExitCode.DONE,
) -> Verdict:
    """A verdict without numbers."""
    return Verdict(
        rule=index,
        kind=rule.rule,
        rule_text=rule_text(rule),
        outcome=outcome,
        subject=subject,
        reason=reason,
        next_command=next_command,
        code=code,
        is_published=record is not None and record.origin is Origin.PUBLISHED,
    )
