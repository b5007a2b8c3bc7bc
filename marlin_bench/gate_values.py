"""Rules with a bound on a value: a share of the ideal, a model's speed-up, a knee.

A bound is kept or broken only when the whole interval lies on one side of it; what straddles it is inconclusive. A
quoted value has no interval and is judged as it stands, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from marlin_bench.bootstrap import resampled_medians
from marlin_bench.exit_codes import ExitCode
from marlin_bench.gate_case import Case, doubt, subject_of
from marlin_bench.gate_policy import bound_text, rule_text
from marlin_bench.gate_rules import AbsoluteRule, KneeRule, ModelRule
from marlin_bench.knee import efficiency, knee
from marlin_bench.models import Model, ModelError, builtin_model
from marlin_bench.record import Origin, Record, Status
from marlin_bench.speedup import Row, curves
from marlin_bench.statistics import CONFIDENCE, Interval, block_medians
from marlin_bench.units import NOTHING, format_percent, format_ratio
from marlin_bench.verdict import Outcome, Subject, Verdict

Bounded = AbsoluteRule | ModelRule | KneeRule


def keeps(rule: Bounded, value: Interval) -> Outcome:
    """Whether a value keeps the bound of a rule: with its whole interval, or not at all; NaN never does."""
    limit = rule.at_least if rule.at_least is not None else rule.at_most
    assert limit is not None  # a bounded rule has exactly one bound
    if math.isinf(value.low) and value.low < 0:  # a quotation, or too few blocks: nothing bounds it
        return Outcome.PASSED if rule.admits(value.value) else Outcome.FAILED
    admitted = [rule.admits(bound) for bound in (value.low, value.value, value.high)]
    if all(admitted):
        return Outcome.PASSED
    return Outcome.INCONCLUSIVE if any(admitted) else Outcome.FAILED


def _limit(rule: Bounded) -> float | None:
    return rule.at_least if rule.at_least is not None else rule.at_most


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _verdict(
    case: Case, index: int, rule: Bounded, subject: Subject, value: Interval, words: str, records: list[Record]
) -> Verdict:
    """The verdict on a value that stands on `records`."""
    outcome, reason, command = keeps(rule, value), "", ""
    hesitation = next((found for record in records if (found := doubt(record, rule)) is not None), None)
    is_published = any(record.origin is Origin.PUBLISHED for record in records)
    if hesitation is not None:
        outcome, reason = Outcome.INCONCLUSIVE, hesitation
    elif outcome is Outcome.INCONCLUSIVE:
        converged = all(record.converged for record in records)
        reason = "the interval straddles the limit" + ("" if converged else ", not converged")
        if math.isinf(value.high) and not value.low > 0:
            reason = "too few blocks for an interval"
    elif outcome is Outcome.FAILED:
        reason = "beyond the limit with its whole interval" if not is_published else "beyond the limit"
    if outcome in {Outcome.FAILED, Outcome.INCONCLUSIVE} and records:
        command = case.command("show" if is_published else "run", records[0])
    return Verdict(
        rule=index,
        kind=rule.rule,
        rule_text=rule_text(rule),
        outcome=outcome,
        subject=subject,
        measured=words,
        required=bound_text(rule),
        reason=", ".join(part for part in (reason, "published" if is_published else "") if part),
        next_command=command,
        value=_finite(value.value),
        low=_finite(value.low),
        high=_finite(value.high),
        limit=_limit(rule),
        code=ExitCode.GATE_FAILED if outcome is Outcome.FAILED else ExitCode.DONE,
        is_published=is_published,
    )


def _without_value(case: Case, index: int, rule: Bounded, subject: Subject, reason: str, record: Record) -> Verdict:
    """A value that a rule asks for and that is not there is never a pass."""
    wrong = record.status in {Status.WRONG, Status.IMPOSSIBLE}
    return Verdict(
        rule=index,
        kind=rule.rule,
        rule_text=rule_text(rule),
        outcome=Outcome.FAILED,
        subject=subject,
        measured=NOTHING,
        required=bound_text(rule),
        reason=reason,
        next_command=case.command("verify" if wrong else "run", record),
        limit=_limit(rule),
        code=ExitCode.WRONG_RESULT if wrong else ExitCode.NOTHING_MEASURED,
    )


def _lacking(row: Row) -> str | None:
    """Why a row has no speed-up, or None."""
    record = row.record
    if record.status is not Status.OK:
        return f"it is {record.status.value}" + (f" ({record.reason})" if record.reason else "")
    if row.speedup is None:
        return "it has no speed-up: its cell has no 16-bit baseline that is right"
    return None


def judge_absolute(case: Case, index: int, rule: AbsoluteRule) -> list[Verdict]:
    """Each selected cell's share of the ideal; baselines have none and are left out."""
    found = []
    for row in case.selected(rule.select):
        if row.record.baseline:
            continue
        subject, lacking = subject_of(row.record), _lacking(row)
        share = None
        if lacking is None and row.speedup is not None:
            if rule.ideal == "computed":
                share, ideal = efficiency(row), row.ideal_speedup
                lacking = None if share is not None else "it has no ideal: the run keeps no roofs for its type"
            else:
                ideal = rule.ideal
                share = Interval(*(bound / ideal for bound in (row.speedup.value, row.speedup.low, row.speedup.high)))
        if share is None or row.speedup is None or lacking is not None:
            found.append(_without_value(case, index, rule, subject, lacking or "it has no value", row.record))
            continue
        words = (
            f"{format_percent(share.value, 1)} of ideal ({format_ratio(row.speedup.value)} of {format_ratio(ideal)})"
        )
        found.append(_verdict(case, index, rule, subject, share, words, [row.record]))
    return found


def judge_knee(case: Case, index: int, rule: KneeRule) -> list[Verdict]:
    """The knee of each selected curve; a knee beyond the last M is at least that."""
    found = []
    for curve in curves(row for row in case.selected(rule.select) if not row.record.baseline):
        records = [row.record for row in curve.points]
        subject = Subject(None, curve.backend, curve.layer)
        wrong = next((row for row in curve.points if row.record.status in {Status.WRONG, Status.IMPOSSIBLE}), None)
        bend = None if wrong is not None else knee(curve)
        if bend is None:
            reason = _lacking(wrong) if wrong is not None else "fewer than two M have a share of the ideal"
            blamed = records[0] if wrong is None else wrong.record
            found.append(_without_value(case, index, rule, subject, reason or "", blamed))
            continue
        # what was not measured is not known: a curve that never falls has its knee somewhere beyond its last M
        bounds = [min(bound, bend.last) for bound in (bend.knee.value, bend.knee.low, bend.knee.high)]
        limit = _limit(rule)
        if math.isinf(bend.knee.high) and (limit is not None and limit > bend.last):
            bounds[2] = math.inf
        words = f"M = {bend.knee.value:.1f}" if math.isfinite(bend.knee.value) else f"beyond M = {bend.last}"
        measured = [record for record in records if record.status is Status.OK]
        found.append(_verdict(case, index, rule, subject, Interval(*bounds), words, measured))
    return found


def _model(case: Case, name: str) -> Model | None:
    found = next((model for model in case.suite.models if model.name == name), None) if case.suite else None
    if found is not None:
        return found
    try:
        return builtin_model(name)
    except ModelError:
        return None


def summed_speedup(rows: list[tuple[Row, Row, int]]) -> Interval:
    """Summed time of the baseline over summed time of the backend, for (row, baseline row, layers of that shape)."""
    value = [0.0, 0.0]
    drawn = [np.zeros(1), np.zeros(1)]
    for stream, (row, baseline, count) in enumerate(rows):
        theirs = {block.index: block.times for block in baseline.record.blocks}
        pairs = [(theirs[block.index], block.times) for block in row.record.blocks if block.index in theirs]
        both = np.stack([block_medians([pair[side] for pair in pairs]) for side in (0, 1)], axis=1)
        medians, draws = np.median(both, axis=0), resampled_medians(both, stream)
        for side in (0, 1):
            value[side] += count * float(medians[side])
            drawn[side] = drawn[side] + count * draws[:, side]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn[0] / drawn[1], [tail, 100 - tail])
    ratio = value[0] / value[1]
    return Interval(ratio, min(float(low), ratio), max(float(high), ratio))


def judge_model(case: Case, index: int, rule: ModelRule) -> list[Verdict]:
    """A model's summed speed-up for each selected backend, M and group size."""
    model = _model(case, rule.model)
    if model is None:
        return []
    chosen: dict[tuple[str, int, int | None], list[Row]] = {}
    for row in case.selected(rule.select):
        if not row.record.baseline:
            chosen.setdefault((row.record.backend, row.record.M, row.record.group_size), []).append(row)
    shapes: dict[tuple[int, int], int] = {}
    for layer in model.layers:
        shapes[layer.K, layer.N] = shapes.get((layer.K, layer.N), 0) + layer.per_block
    found = []
    for (backend, M, _), members in chosen.items():
        by_shape = {(row.record.K, row.record.N): row for row in members}
        if not any(shape in by_shape for shape in shapes):
            continue
        subject = Subject(None, backend, rule.model, M)
        judged = [_judge_shape(by_shape.get(shape), shape, case.row_of.get) for shape in shapes]
        broken = next((problem for _, _, problem in judged if problem is not None), None)
        if broken is not None:
            record = next((row.record for row, _, problem in judged if problem and row), members[0].record)
            if record.origin is Origin.PUBLISHED:
                found.append(_not_published(index, rule, subject))
                continue
            found.append(_without_value(case, index, rule, subject, broken, record))
            continue
        parts = [
            (row, base, count) for (row, base, _), count in zip(judged, shapes.values(), strict=True) if row and base
        ]
        value = summed_speedup(parts)
        words = f"{value.value:.2f}x over {len(shapes)} layers"
        found.append(_verdict(case, index, rule, subject, value, words, [row.record for row, _, _ in parts]))
    return found


def _judge_shape(
    row: Row | None, shape: tuple[int, int], row_of: Callable[[tuple[str, str]], Row | None]
) -> tuple[Row | None, Row | None, str | None]:
    """The row of a layer, its baseline's row, and what is missing of them."""
    if row is None:
        return None, None, f"its layer K={shape[0]} N={shape[1]} was not measured"
    lacking = _lacking(row)
    if lacking is not None or row.baseline is None:
        return row, None, f"in {row.record.cell}, {lacking}"
    baseline = row_of((row.record.cell.partition("+")[0], row.baseline))
    if baseline is None or not baseline.record.blocks or not row.record.blocks:
        return row, None, f"in {row.record.cell}, the times behind its speed-up are not kept"
    return row, baseline, None


def _not_published(index: int, rule: ModelRule, subject: Subject) -> Verdict:
    return Verdict(
        rule=index,
        kind=rule.rule,
        rule_text=rule_text(rule),
        outcome=Outcome.NOT_APPLICABLE,
        subject=subject,
        reason="published values have no times to sum",
        is_published=True,
    )
