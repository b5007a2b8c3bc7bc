"""`gate`: a run judged by the rules of its suite or of a policy, on stored records alone.

What breaks the question (another suite, another device, two devices in one run) is an error and ends the gate; what
only weakens the answer makes the verdicts concerned inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from marlin_bench.exit_codes import ExitCode
from marlin_bench.gate_case import Case
from marlin_bench.gate_changes import judge_relative, judge_right
from marlin_bench.gate_policy import rule_text
from marlin_bench.gate_rules import AbsoluteRule, GateRule, KneeRule, ModelRule, RelativeRule, RightRule
from marlin_bench.gate_values import judge_absolute, judge_knee, judge_model
from marlin_bench.record import Origin, Status
from marlin_bench.store import Run
from marlin_bench.units import NOTHING
from marlin_bench.verdict import GateReport, Outcome, Subject, Verdict


class GateError(RuntimeError):
    """A question that cannot be judged (exit 2); one sentence."""


class EmptyRunError(GateError):
    """Nothing was measured (exit 5)."""


class OtherDeviceError(GateError):
    """The run is not of the device that the suite is written for (exit 6)."""


def refuse(case: Case) -> None:
    """Raise what makes a run unfit to be judged at all."""
    run, suite = case.run, case.policy.suite
    environment = run.meta.environment
    if suite is not None and not suite.device.matches(environment.device_kind, environment.device_name):
        wanted = suite.device.name or suite.device.kind
        raise OtherDeviceError(
            f"suite {suite.name} is for {wanted}, and {run.folder} was measured on {environment.device_name}: "
            "judge it with the suite of that device, or with a policy file"
        )
    if suite is not None and run.meta.suite != suite.name:
        raise GateError(
            f"{run.folder} is a run of suite {run.meta.suite}, not of {suite.name}: give the suite that it measured"
        )
    if not run.records:
        raise EmptyRunError(f"{run.folder} holds no records: measure with `marlin-bench run {run.meta.suite}`")
    devices = sorted({record.device for record in run.records})
    if len(devices) > 1:
        raise GateError(
            f"{run.folder} holds records of {len(devices)} devices ({', '.join(devices)}): a run is of one; "
            "measure each device into a folder of its own"
        )
    if case.baseline is not None:
        refuse_baseline(case.baseline)


def refuse_baseline(baseline: Run) -> None:
    """Raise what makes a run unfit to be compared with."""
    if baseline.meta.origin is Origin.PUBLISHED:
        raise GateError(f"{baseline.folder} quotes published values: a baseline must be measured")
    if not any(record.status is Status.OK for record in baseline.records):
        raise EmptyRunError(f"the baseline {baseline.folder} holds no right record: set another one")


def judge(case: Case, *, strict: bool = False, notes: Sequence[str] = ()) -> GateReport:
    """Every verdict on a run; GateError where it cannot be judged at all."""
    refuse(case)
    verdicts = [verdict for index, rule in enumerate(case.policy.rules) for verdict in _judge_rule(case, index, rule)]
    environment = case.run.meta.environment
    return GateReport(
        policy=case.policy.name,
        run=case.run.meta.run,
        folder=str(case.run.folder),
        device=environment.device_name,
        commit=environment.commit + ("+changes" if environment.dirty else ""),
        rules=[rule_text(rule) for rule in case.policy.rules],
        verdicts=verdicts,
        baseline=None if case.baseline is None else case.baseline.meta.run,
        strict=strict,
        notes=[*notes, *_notes(case)],
    )


def _notes(case: Case) -> Iterator[str]:
    suite, meta = case.policy.suite, case.run.meta
    if suite is not None and not case.is_published and suite.digest != meta.suite_digest:
        yield f"the run was measured with another version of suite {suite.name}; it is judged by the present one"


def _judge_rule(case: Case, index: int, rule: GateRule) -> list[Verdict]:
    match rule:
        case AbsoluteRule():
            found = judge_absolute(case, index, rule)
        case ModelRule():
            found = judge_model(case, index, rule)
        case KneeRule():
            found = judge_knee(case, index, rule)
        case RelativeRule():
            found = judge_relative(case, index, rule)
        case RightRule():
            found = judge_right(case, index, rule)
    missing = [] if isinstance(rule, ModelRule) else case.missing(rule.select)
    if missing:
        found.append(_missing(case, index, rule, missing))
    if not found:
        found.append(_selects_nothing(index, rule))
    return found


def _missing(case: Case, index: int, rule: GateRule, missing: list[str]) -> Verdict:
    several = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    suite = case.policy.name if case.policy.suite else case.run.meta.suite
    reason = f"the suite plans {missing[0]}{several}, and the run has no record of it"
    return _without_record(index, rule, reason, f"marlin-bench run {suite}")


def _selects_nothing(index: int, rule: GateRule) -> Verdict:
    reason = "the rule selects no record of this run: correct its `select`, or measure what it asks for"
    return _without_record(index, rule, reason, "marlin-bench show --json")


def _without_record(index: int, rule: GateRule, reason: str, next_command: str) -> Verdict:
    return Verdict(
        rule=index,
        kind=rule.rule,
        rule_text=rule_text(rule),
        outcome=Outcome.FAILED,
        subject=Subject(),
        measured=NOTHING,
        required="a record",
        reason=reason,
        next_command=next_command,
        code=ExitCode.NOTHING_MEASURED,
    )
