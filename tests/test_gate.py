"""The gate: what passes, what fails, what stays open, and how it ends for the shell."""

import json
import math
import random
import xml.etree.ElementTree as Xml
from pathlib import Path

import numpy as np
import pytest
from simulated_gate import NOISES, gate_report, meta_of, relative_case, simulated_records
from synthetic_run import H200_CEILINGS, RunSpec, environment, h200_records, h200_run, make_record

from marlin_bench import published
from marlin_bench.exit_codes import ExitCode
from marlin_bench.gate import EmptyRunError, GateError, OtherDeviceError, judge
from marlin_bench.gate_case import Case
from marlin_bench.gate_files import (
    MOST_ANNOTATIONS,
    bencher_metric_format,
    gate_json,
    github_action_benchmark,
    github_annotations,
    junit,
)
from marlin_bench.gate_policy import Policy, load_policy, rule_text
from marlin_bench.gate_rules import AbsoluteRule, KneeRule, ModelRule, RelativeRule, RightRule
from marlin_bench.gate_tables import COMMENT_LIMIT_BYTES, gate_markdown, gate_table
from marlin_bench.gate_values import keeps
from marlin_bench.record import Flag, Origin, Status
from marlin_bench.retry import cells_to_repeat, pooled, repeated
from marlin_bench.statistics import Interval
from marlin_bench.store import StoreError, read_run
from marlin_bench.suite import SuiteError, parse_suite
from marlin_bench.verdict import GateReport, Outcome, Subject, Verdict

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "results" / "published" / "a10_paper"
EVERY_NOISE = (*NOISES, "h200_fit")
KINDS = {"absolute": AbsoluteRule, "model": ModelRule, "knee": KneeRule, "relative": RelativeRule, "right": RightRule}


def rule(kind, **fields):
    return KINDS[kind].model_validate({"rule": kind, **fields})


def case(run, *rules, suite=None, **fields):
    return Case(run, Policy("policy", "policy.yaml", rules, suite), **fields)


def outcomes(report):
    return [verdict.outcome for verdict in report.verdicts]


@pytest.fixture
def h200(tmp_path):
    return h200_run(tmp_path)


# -- the paper's figures ---------------------------------------------------------------------------------


def test_marlin_passes_95_percent_of_ideal_up_to_32_on_the_papers_locked_figures():
    report = judge(Case(read_run(PAPER / "fig10_locked_885mhz"), load_policy(str(ROOT / "suites" / "a10.yaml"))))
    assert report.exit_code is ExitCode.DONE
    assert report.summary == ("6 passed, 0 failed, 0 inconclusive, 1 not applicable, judged on published values")


@pytest.mark.parametrize("folder", ["fig10_locked_885mhz", "fig01_fig12_boost"])
def test_marlin_passes_on_every_published_figure(folder):
    guard = rule("absolute", select={"backend": "marlin", "M": {"at_most": 32}}, at_least=0.95)
    report = judge(case(read_run(PAPER / folder), guard))
    assert report.exit_code is ExitCode.DONE
    assert report.summary.endswith("judged on published values")


FALLS = {  # the first M under 95 % of the ideal, from the numbers that the paper prints
    "fig01_fig12_boost": {"tinygemm": 1, "exllamav2": 2, "awq": 1, "bitsandbytes": 1, "marlin": 64},
    "fig10_locked_885mhz": {"tinygemm": 1, "exllamav2": 1, "awq": 1, "bitsandbytes": 1, "marlin": None},
}


@pytest.mark.parametrize(("folder", "backend"), [(f, b) for f, falls in FALLS.items() for b in falls])
def test_each_baseline_of_the_paper_fails_from_the_batch_where_it_falls(folder, backend):
    guard = rule("absolute", select={"backend": backend}, at_least=0.95)
    report = judge(case(read_run(PAPER / folder), guard))
    failing = sorted(verdict.subject.M for verdict in report.verdicts if verdict.outcome is Outcome.FAILED)
    first = FALLS[folder][backend]
    assert (failing[0] if failing else None) == first
    assert report.exit_code is (ExitCode.DONE if first is None else ExitCode.GATE_FAILED)


def test_boost_figures_do_not_answer_a_rule_that_asks_for_locked_clocks():
    report = judge(Case(read_run(PAPER / "fig01_fig12_boost"), load_policy(str(ROOT / "suites" / "a10.yaml"))))
    assert report.exit_code is ExitCode.INCONCLUSIVE
    assert "clocks were not locked" in report.by_severity[0].reason


def test_published_values_are_no_evidence_for_right_relative_and_model():
    run = read_run(PAPER / "fig10_locked_885mhz")
    for asked in (rule("right"), rule("relative")):
        report = judge(case(run, asked))
        assert set(outcomes(report)) == {Outcome.NOT_APPLICABLE}
        assert report.exit_code is ExitCode.NOTHING_MEASURED
        assert "judged on published values" not in report.summary
        assert all(verdict.is_published for verdict in report.verdicts)


def test_published_values_are_never_a_baseline(h200):
    with pytest.raises(GateError, match="a baseline must be measured"):
        judge(case(h200, rule("relative"), baseline=read_run(PAPER / "fig10_locked_885mhz")))


def test_the_checked_in_records_are_those_of_the_figures_file(tmp_path):
    for folder in published.write_published(PAPER / published.FIGURES_FILE, tmp_path):
        for name in ("run.json", "records.jsonl"):
            assert (folder / name).read_text() == (PAPER / folder.name / name).read_text(), folder.name


def test_the_papers_ideal_line_follows_from_its_roofs():
    from marlin_bench.roofline import roofs_from_ceilings
    from marlin_bench.speedup import rows

    for folder, expected in (
        ("fig01_fig12_boost", (3.88, 3.88, 3.88, 3.87, 3.87, 3.85, 3.27, 1.64)),
        ("fig10_locked_885mhz", (3.88, 3.88, 3.88, 3.87, 3.87, 3.41, 1.71, 1.00)),
    ):
        run = read_run(PAPER / folder)
        found = [r for r in rows(run.records, roofs_from_ceilings(run.meta.ceilings)) if r.record.backend == "marlin"]
        assert [round(row.ideal_speedup, 2) for row in found] == pytest.approx(expected, abs=0.011)


def test_figure_9_is_there_for_every_gpu_and_model():
    values = published.published_models()
    assert len(values) == 20
    assert {(one.device, one.speedup) for one in values if one.model == "paper-llama-7b"} >= {("NVIDIA A10", 3.69)}


# -- bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        ({"at_least": 0.9}, Interval(0.95, 0.91, 0.99), Outcome.PASSED),
        ({"at_least": 0.9}, Interval(0.9, 0.9, 0.9), Outcome.PASSED),
        ({"at_least": 0.9}, Interval(0.85, 0.81, 0.89), Outcome.FAILED),
        ({"at_least": 0.9}, Interval(0.91, 0.89, 0.93), Outcome.INCONCLUSIVE),
        ({"at_least": 0.9}, Interval(0.89, 0.87, 0.91), Outcome.INCONCLUSIVE),
        ({"at_most": 0.9}, Interval(0.85, 0.81, 0.89), Outcome.PASSED),
        ({"at_most": 0.9}, Interval(0.9, 0.9, 0.9), Outcome.PASSED),
        ({"at_most": 0.9}, Interval(0.95, 0.91, 0.99), Outcome.FAILED),
        ({"at_most": 0.9}, Interval(0.89, 0.87, 0.91), Outcome.INCONCLUSIVE),
        ({"at_least": 0.9}, Interval(0.91, -math.inf, math.inf), Outcome.PASSED),
        ({"at_least": 0.9}, Interval(0.89, -math.inf, math.inf), Outcome.FAILED),
        ({"at_least": 0.9}, Interval(math.nan, math.nan, math.nan), Outcome.FAILED),
        ({"at_most": 0.9}, Interval(math.nan, -math.inf, math.inf), Outcome.FAILED),
    ],
)
def test_a_bound_is_kept_with_the_whole_interval_or_not_at_all(bound, value, expected):
    assert keeps(rule("absolute", **bound), value) is expected


def test_absolute_judges_each_cell_at_its_own_ideal_or_at_a_number(h200):
    share = judge(case(h200, rule("absolute", select={"backend": "marlin", "M": 16}, at_least=0.5)))
    assert set(outcomes(share)) == {Outcome.PASSED}
    against_number = rule(
        "absolute", select={"backend": "marlin", "layer": "72k_x_18k", "M": 16}, at_least=0.95, ideal=2.6
    )
    (verdict,) = judge(case(h200, against_number)).verdicts
    assert verdict.value == pytest.approx(617 / 245 / 2.6, rel=0.01)
    assert verdict.outcome is Outcome.PASSED
    assert verdict.limit == 0.95


def test_a_slow_cell_fails_with_numbers_and_a_command(h200):
    report = judge(case(h200, rule("absolute", select={"backend": "marlin", "M": 256}, at_least=0.95)))
    assert report.exit_code is ExitCode.GATE_FAILED
    verdict = report.by_severity[0]
    assert "of ideal" in verdict.measured
    assert verdict.required == "at least 95% of ideal"
    assert verdict.next_command == f"marlin-bench run h200 --only {verdict.subject.cell} --backend marlin"


def test_a_throttled_cell_is_inconclusive_whatever_its_value(tmp_path):
    records = [record.model_copy(update={"flags": [Flag.THROTTLED]}) for record in h200_records(layers=("square_8k",))]
    run = RunSpec(records).write(tmp_path)
    for at_least in (0.01, 5.0):
        report = judge(case(run, rule("absolute", select={"backend": "marlin", "M": 16}, at_least=at_least)))
        assert outcomes(report) == [Outcome.INCONCLUSIVE]
        assert report.exit_code is ExitCode.INCONCLUSIVE
        assert "throttled" in report.verdicts[0].reason


def test_strict_makes_one_open_cell_count_and_a_decided_rule_forgives_it_otherwise(tmp_path):
    records = h200_records(layers=("square_8k",))
    records = [r.model_copy(update={"flags": [Flag.THROTTLED]}) if r.M == 16 else r for r in records]
    guard = case(RunSpec(records).write(tmp_path), rule("absolute", select={"backend": "marlin"}, at_least=0.01))
    assert judge(guard).exit_code is ExitCode.DONE
    assert judge(guard, strict=True).exit_code is ExitCode.INCONCLUSIVE


def test_clocks_that_a_rule_wants_locked(tmp_path):
    free = RunSpec(h200_records(layers=("square_8k",))).write(tmp_path)
    asked = rule("absolute", select={"backend": "marlin", "M": 1}, at_least=0.1, clocks="locked")
    assert outcomes(judge(case(free, asked))) == [Outcome.INCONCLUSIVE]
    locked = [record.model_copy(update={"clocks_locked": True}) for record in free.records]
    assert outcomes(judge(case(RunSpec(locked, name="b").write(tmp_path), asked))) == [Outcome.PASSED]
    right = rule("right", select={"M": 1}, clocks="locked")
    assert set(outcomes(judge(case(free, right)))) == {Outcome.INCONCLUSIVE}


def test_right_tells_wrong_from_crashed_from_unsupported_from_not_installed(tmp_path):
    statuses = {
        Status.WRONG: (Outcome.FAILED, ExitCode.WRONG_RESULT),
        Status.IMPOSSIBLE: (Outcome.FAILED, ExitCode.WRONG_RESULT),
        Status.CRASHED: (Outcome.FAILED, ExitCode.PARTLY_FAILED),
        Status.TIMEOUT: (Outcome.FAILED, ExitCode.PARTLY_FAILED),
        Status.OUT_OF_MEMORY: (Outcome.FAILED, ExitCode.PARTLY_FAILED),
        Status.MISSING: (Outcome.INCONCLUSIVE, ExitCode.DONE),
        Status.UNSUPPORTED: (Outcome.NOT_APPLICABLE, ExitCode.DONE),
        Status.OK: (Outcome.PASSED, ExitCode.DONE),
    }
    for status, (outcome, code) in statuses.items():
        records = [make_record("cublas_fp16", 1, 1e-5), make_record("marlin", 1, 1e-5, status=status, reason="why")]
        report = judge(case(RunSpec(records, name=status.value).write(tmp_path), rule("right")))
        assert outcomes(report) == [Outcome.PASSED, outcome]
        command = "marlin-bench verify h200 --only square_8k/g128/M1 --backend marlin"
        assert [one.next_command for one in report.verdicts] == ["", command if outcome is Outcome.FAILED else ""]
        assert report.exit_code is code


def test_a_wrong_answer_outranks_a_slow_one(tmp_path):
    records = [
        *h200_records(layers=("square_8k",)),
        make_record("tinygemm", 1, 1e-5, status=Status.WRONG, reason="NaN"),
    ]
    report = judge(
        case(
            RunSpec(records).write(tmp_path),
            rule("absolute", select={"backend": "marlin"}, at_least=2.0),
            rule("right"),
        )
    )
    assert report.exit_code is ExitCode.WRONG_RESULT
    assert report.by_severity[0].subject.backend == "tinygemm"


def test_the_model_rule_sums_layers_as_the_model_holds_them(tmp_path):
    shapes = {
        "qkv": (4096, 12288, 40e-6),
        "o": (4096, 4096, 15e-6),
        "gate_up": (4096, 22016, 70e-6),
        "down": (11008, 4096, 36e-6),
    }
    records = []
    for name, (K, N, time) in shapes.items():
        for backend, share in (("cublas_fp16", 1.0), ("marlin", 1 / 3 if name == "o" else 0.5)):
            records.append(make_record(backend, 16, time * share, layer=f"llama-2-7b.{name}", K=K, N=N, noise=0.001))
    run = RunSpec(records).write(tmp_path)
    expected = 161 / (73 + 5)
    for bound, outcome in ((expected - 0.05, Outcome.PASSED), (expected + 0.05, Outcome.FAILED)):
        asked = rule("model", model="llama-2-7b", select={"backend": "marlin", "M": 16}, at_least=bound)
        (verdict,) = judge(case(run, asked)).verdicts
        assert verdict.value == pytest.approx(expected, rel=2e-3)
        assert verdict.low < verdict.value < verdict.high
        assert verdict.outcome is outcome
    run = RunSpec(records[2:], name="without_qkv").write(tmp_path)
    report = judge(case(run, asked))
    assert report.exit_code is ExitCode.NOTHING_MEASURED
    assert "K=4096 N=12288 was not measured" in report.verdicts[0].reason


def test_the_knee_rule_finds_the_batch_where_a_curve_leaves_its_ideal(h200):
    asked = {"select": {"backend": "marlin", "layer": "square_8k"}}
    (high,) = judge(case(h200, rule("knee", at_least=900, **asked))).verdicts
    assert high.outcome is Outcome.FAILED
    assert high.high < 900
    (low,) = judge(case(h200, rule("knee", at_most=900, **asked))).verdicts
    assert low.outcome is Outcome.PASSED


def test_a_knee_beyond_the_last_batch_is_at_least_that_and_unknown_above():
    run = read_run(PAPER / "fig10_locked_885mhz")
    asked = {"select": {"backend": "marlin"}}
    (reached,) = judge(case(run, rule("knee", at_least=28, **asked))).verdicts
    assert (reached.outcome, reached.measured) == (Outcome.PASSED, "beyond M = 128")
    (unknown,) = judge(case(run, rule("knee", at_least=500, **asked))).verdicts
    assert unknown.outcome is Outcome.INCONCLUSIVE
    (awq,) = judge(case(run, rule("knee", select={"backend": "awq"}, at_least=28))).verdicts
    assert (awq.outcome, awq.value) == (Outcome.FAILED, 1.0)


def test_a_knee_asks_for_locked_clocks_and_tells_what_it_lacks(tmp_path, h200):
    select = {"backend": "marlin", "layer": "square_8k"}
    (locked,) = judge(case(h200, rule("knee", select=select, at_least=1, clocks="locked"))).verdicts
    assert (locked.outcome, "not locked" in locked.reason) == (Outcome.INCONCLUSIVE, True)
    (few,) = judge(case(h200, rule("knee", select={**select, "M": 16}, at_least=1))).verdicts
    assert few.reason == "fewer than two M have a share of the ideal"
    assert few.next_command == "marlin-bench run h200 --only square_8k/g128/M16 --backend marlin"
    records = h200_records(layers=("square_8k",))
    records = [r for r in records if (r.backend, r.M) != ("marlin", 64)]
    records.append(make_record("marlin", 64, 1, status=Status.WRONG, reason="off by 3"))
    (wrong,) = judge(case(RunSpec(records, name="w").write(tmp_path), rule("knee", select=select, at_least=1))).verdicts
    assert (wrong.reason, wrong.code) == ("it is wrong (off by 3)", ExitCode.WRONG_RESULT)
    assert wrong.next_command == "marlin-bench verify h200 --only square_8k/g128/M64 --backend marlin"


def test_the_reason_and_the_next_command_fit_the_outcome(tmp_path):
    cells = [make_record(name, 1, time, noise=0.01) for name, time in (("cublas_fp16", 3e-5), ("marlin", 1e-5))]
    run = RunSpec(cells).write(tmp_path)
    share = judge(case(run, rule("absolute", at_least=0.1, ideal=3.0))).verdicts[0].value
    again = "marlin-bench run h200 --only square_8k/g128/M1 --backend marlin"
    for at_least, reason, command in (
        (0.9 * share, "", ""),
        (share, "the interval straddles the limit", again),
        (1.1 * share, "beyond the limit with its whole interval", again),
    ):
        (verdict,) = judge(case(run, rule("absolute", at_least=at_least, ideal=3.0))).verdicts
        assert (verdict.reason, verdict.next_command) == (reason, command)
    short = [record.model_copy(update={"blocks": record.blocks[:4]}) for record in cells]
    for at_least in (0.9 * share, 1.1 * share):
        asked = rule("absolute", at_least=at_least, ideal=3.0)
        (verdict,) = judge(case(RunSpec(short, name="short").write(tmp_path), asked)).verdicts
        assert (verdict.outcome, verdict.reason) == (Outcome.INCONCLUSIVE, "too few blocks for an interval")


def test_a_model_is_the_one_of_the_suite_where_it_has_one_of_that_name(tmp_path):
    text = (
        "device: {kind: cuda, name: H200}\nlayers: [{model: llama-3-8b}, {model: llama-2-7b, tensor_parallel: 2}]\n"
        "M: [16]\nbackends: [cublas_fp16, marlin]\ngate: [{rule: right}]\n"
    )
    halves = next(one for one in parse_suite(text, source="s", name="h200").models if one.name.startswith("llama-2"))
    records = [
        make_record(backend, 16, time, layer=f"{halves.name}.{layer.name}", K=layer.K, N=layer.N)
        for backend, time in (("cublas_fp16", 3e-5), ("marlin", 1e-5))
        for layer in halves.layers
    ]
    made = RunSpec(records).write(tmp_path)
    run = made.__class__(made.folder, made.meta.model_copy(update={"suite_text": text}), made.records)
    (verdict,) = judge(case(run, rule("model", model=halves.name, select={"backend": "marlin"}, at_least=2))).verdicts
    assert (verdict.outcome, verdict.value) == (Outcome.PASSED, pytest.approx(3.0, rel=0.01))


# -- broken input ----------------------------------------------------------------------------------------


def suite(device="H200", name="h200", backends="[cublas_fp16, marlin]"):
    text = (
        f"device: {{kind: cuda, name: {device}}}\nlayers: [{{name: square_8k, K: 8192, N: 8192}}]\n"
        f"M: [1, 16]\nbackends: {backends}\ngate: [{{rule: right}}]\n"
    )
    return parse_suite(text, source="suite.yaml", name=name)


def test_a_run_of_another_device_than_the_suites_is_an_environment_error(h200):
    with pytest.raises(OtherDeviceError, match=r"is for A10, and .* was measured on NVIDIA H200"):
        judge(case(h200, rule("right"), suite=suite("A10")))


def test_a_run_of_another_suite_is_refused(h200):
    with pytest.raises(GateError, match="a run of suite h200, not of other"):
        judge(case(h200, rule("right"), suite=suite(name="other")))


def test_a_run_without_records_is_nothing_measured(tmp_path):
    run = RunSpec([]).write(tmp_path)
    with pytest.raises(EmptyRunError, match="holds no records"):
        judge(case(run, rule("right")))


def test_two_devices_in_one_run_are_refused(tmp_path):
    records = [make_record("marlin", 1, 1e-5), make_record("marlin", 16, 1e-5, device="NVIDIA A10")]
    with pytest.raises(GateError, match="records of 2 devices"):
        judge(case(RunSpec(records).write(tmp_path), rule("right")))


@pytest.mark.parametrize("kind", ["absolute", "knee", "relative", "right"])
def test_a_rule_that_selects_nothing_fails_with_5(h200, kind):
    bound = {"at_least": 1} if kind in {"absolute", "knee"} else {}
    report = judge(case(h200, rule(kind, select={"backend": "machete"}, **bound)))
    assert report.exit_code is ExitCode.NOTHING_MEASURED
    assert "selects no record" in report.verdicts[0].reason


def test_a_value_that_is_missing_fails_with_5(tmp_path):
    alone = RunSpec([make_record("marlin", 1, 1e-5)]).write(tmp_path)
    report = judge(case(alone, rule("absolute", at_least=0.1)))
    assert report.exit_code is ExitCode.NOTHING_MEASURED
    assert "no 16-bit baseline" in report.verdicts[0].reason
    roofless = RunSpec(h200_records(layers=("square_8k",)), name="roofless", ceilings=[]).write(tmp_path)
    report = judge(case(roofless, rule("absolute", select={"M": 1}, at_least=0.1)))
    assert "keeps no roofs" in report.verdicts[0].reason
    crashed = [
        make_record("cublas_fp16", 1, 1e-5),
        make_record("marlin", 1, 1, status=Status.CRASHED, reason="signal 11"),
    ]
    report = judge(case(RunSpec(crashed, name="crashed").write(tmp_path), rule("absolute", at_least=0.1)))
    assert "signal 11" in report.verdicts[0].reason
    assert report.exit_code is ExitCode.NOTHING_MEASURED


def test_what_the_suite_plans_and_the_run_lacks_fails_with_5(tmp_path):
    records = [make_record(backend, M, 1e-5) for backend in ("cublas_fp16", "marlin") for M in (1, 16)]
    whole = RunSpec(records).write(tmp_path)
    assert judge(case(whole, rule("right"), suite=suite())).exit_code is ExitCode.DONE
    partial = RunSpec(records[:-1], name="partial").write(tmp_path)
    report = judge(case(partial, rule("right"), suite=suite()))
    assert report.exit_code is ExitCode.NOTHING_MEASURED
    assert "plans square_8k/g128/M16 marlin" in report.by_severity[0].reason
    unconcerned = judge(case(partial, rule("right", select={"M": 1}), suite=suite()))
    assert unconcerned.exit_code is ExitCode.DONE


def damaged(run, change):
    path = run.folder / "records.jsonl"
    path.write_text(change(path.read_text()))
    return run.folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace('"schema_version":1', '"schema_version":99'), "schema version 99"),
        (lambda text: text.replace('"M":1,', '"M":"many",', 1), "is not a record"),
        (lambda text: text.replace('"sm_clock_hz":1980000000.0', '"sm_clock_hz":NaN', 1), "finite number"),
        (lambda text: text[:200] + "\n" + text, "is not a record"),
    ],
)
def test_a_damaged_file_is_a_complaint_with_its_place(h200, change, sentence):
    with pytest.raises(StoreError, match=sentence):
        read_run(damaged(h200, change))


def test_a_file_cut_short_costs_its_last_record_and_the_gate_misses_it(tmp_path):
    records = [make_record(backend, M, 1e-5) for M in (1, 16) for backend in ("cublas_fp16", "marlin")]
    folder = damaged(RunSpec(records).write(tmp_path), lambda text: text[:-50])
    report = judge(case(read_run(folder), rule("right"), suite=suite()))
    assert report.exit_code is ExitCode.NOTHING_MEASURED
    assert "square_8k/g128/M16 marlin" in report.by_severity[0].reason


def test_a_suite_without_a_gate_and_a_broken_policy_are_usage_errors(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("gate:\n- {rule: absolute, at_least: 0.9, at_most: 1}\n")
    with pytest.raises(SuiteError, match="exactly one of at_least and at_most"):
        load_policy(str(path))
    path.write_text("gate:\n- {rule: right, selekt: {}}\n")
    with pytest.raises(SuiteError, match="did you mean select"):
        load_policy(str(path))
    path.write_text("gate: []\n")
    with pytest.raises(SuiteError):
        load_policy(str(path))
    path.write_text("description: one\ngate:\n- {rule: right}\n")
    assert load_policy(str(path)).suite is None


# -- against yesterday -----------------------------------------------------------------------------------


def test_without_a_baseline_a_relative_rule_stays_open_and_says_what_to_do(h200):
    report = judge(case(h200, rule("relative")))
    assert report.exit_code is ExitCode.INCONCLUSIVE
    assert "baseline set" in report.verdicts[0].reason


def test_a_baseline_of_another_machine_or_clock_policy_stays_open(tmp_path, h200):
    other = RunSpec(h200_records(), name="other", environment=environment(device_name="NVIDIA H100")).write(tmp_path)
    report = judge(case(h200, rule("relative"), baseline=other))
    assert report.exit_code is ExitCode.INCONCLUSIVE
    assert "device was NVIDIA H100 and is NVIDIA H200" in report.verdicts[0].reason
    locked = h200.__class__(h200.folder, h200.meta.model_copy(update={"clock_policy": "lock"}), h200.records)
    assert "clock policy" in judge(case(h200, rule("relative"), baseline=locked)).verdicts[0].reason


def test_a_backend_that_broke_since_the_baseline_fails_by_how_it_broke(tmp_path):
    old = RunSpec([make_record(b, 1, 1e-5) for b in ("cublas_fp16", "marlin")], name="old").write(tmp_path)
    for status, code in (
        (Status.WRONG, ExitCode.WRONG_RESULT),
        (Status.CRASHED, ExitCode.PARTLY_FAILED),
        (Status.UNSUPPORTED, ExitCode.NOTHING_MEASURED),
        (None, ExitCode.NOTHING_MEASURED),
    ):
        new = [make_record("cublas_fp16", 1, 1e-5)]
        if status is not None:
            new.append(make_record("marlin", 1, 1, status=status, reason="why"))
        run = RunSpec(new, name=str(status)).write(tmp_path)
        report = judge(case(run, rule("relative", select={"backend": "*"}), baseline=old))
        assert report.exit_code is code, status
        verb = "verify" if status is Status.WRONG else "run"
        assert report.by_severity[0].next_command.startswith(f"marlin-bench {verb} h200 --only square_8k/g128/M1")


def test_a_backend_that_is_new_fails_nothing(tmp_path):
    old = RunSpec([make_record("cublas_fp16", 1, 1e-5)], name="old").write(tmp_path)
    new = RunSpec([make_record(b, 1, 1e-5) for b in ("cublas_fp16", "marlin")], name="new").write(tmp_path)
    report = judge(case(new, rule("relative"), baseline=old))
    assert set(outcomes(report)) == {Outcome.PASSED, Outcome.NOT_APPLICABLE}
    assert report.exit_code is ExitCode.DONE
    assert not any(verdict.is_published for verdict in report.verdicts)


def as_in_ci(meta, folder, rng, noise, **asked):
    """A gate with two retries; where processes differ, as on the H200, the baseline is of three of them."""
    return gate_report(meta, folder, rng, noise, accepted=3 if noise == "h200_fit" else 1, retries=2, **asked)


def test_a_thousand_gates_of_the_same_code_never_fail(tmp_path):
    meta, rng, verdicts = meta_of(tmp_path), np.random.default_rng(11), []
    for number in range(1000):
        noise = EVERY_NOISE[number % len(EVERY_NOISE)]
        report = as_in_ci(meta, tmp_path, rng, noise, cells=2)
        assert report.exit_code is not ExitCode.GATE_FAILED, (number, noise, report.by_severity[0])
        verdicts += outcomes(report)
    assert verdicts.count(Outcome.PASSED) > 0.95 * len(verdicts)


@pytest.mark.parametrize("noise", EVERY_NOISE)
@pytest.mark.parametrize(("slower", "least"), [(0.02, 0.95), (0.05, 1.0)])
def test_a_slower_kernel_is_caught_under_every_noise(tmp_path, noise, slower, least):
    meta, rng = meta_of(tmp_path), np.random.default_rng(12)
    codes = [as_in_ci(meta, tmp_path, rng, noise, cells=4, slower=slower).exit_code for _ in range(40)]
    assert codes.count(ExitCode.GATE_FAILED) >= least * len(codes)


@pytest.mark.parametrize("noise", EVERY_NOISE)
def test_a_gate_of_one_cell_catches_two_percent_when_it_may_measure_again(tmp_path, noise):
    meta, rng = meta_of(tmp_path), np.random.default_rng(13)
    reports = [as_in_ci(meta, tmp_path, rng, noise, cells=1, slower=0.02) for _ in range(100)]
    assert sum(report.exit_code is ExitCode.GATE_FAILED for report in reports) >= 95


def test_a_cell_too_noisy_to_see_five_percent_is_open_not_passed(tmp_path):
    meta, rng = meta_of(tmp_path), np.random.default_rng(13)
    old, new = simulated_records(rng, "plain", cells=1), simulated_records(rng, "plain", cells=1)
    loud = relative_case(meta, tmp_path, old, new, rule("relative", select={"backend": "marlin"}, noise=100))
    report = judge(loud)
    assert "too noisy" in report.verdicts[0].reason
    assert report.exit_code is ExitCode.INCONCLUSIVE
    generous = rule("relative", select={"backend": "marlin"}, relative=0.2)
    assert outcomes(judge(relative_case(meta, tmp_path, old, new, generous))) == [Outcome.PASSED]


def test_a_throttled_side_leaves_a_regression_open(tmp_path):
    meta, rng = meta_of(tmp_path), np.random.default_rng(14)
    old, new = simulated_records(rng, "plain", cells=1), simulated_records(rng, "plain", cells=1, slower=0.1)
    (failed,) = judge(relative_case(meta, tmp_path, old, new)).verdicts
    assert (failed.outcome, failed.next_command.split()[:2]) == (Outcome.FAILED, ["marlin-bench", "run"])
    (passed,) = judge(relative_case(meta, tmp_path, old, old)).verdicts
    assert (passed.outcome, passed.next_command) == (Outcome.PASSED, "")
    for side in (old, new):
        side[1] = side[1].model_copy(update={"flags": [Flag.THROTTLED]})
        (verdict,) = judge(relative_case(meta, tmp_path, old, new)).verdicts
        assert (verdict.outcome, verdict.reason[:9]) == (Outcome.INCONCLUSIVE, "throttled")
        assert verdict.next_command.endswith("--retry 2")
        side[1] = side[1].model_copy(update={"flags": []})


# -- measuring again -------------------------------------------------------------------------------------


def test_failing_and_open_cells_are_measured_again_and_no_other():
    def verdict(outcome, **subject):
        return Verdict(0, "right", "", outcome, Subject(**subject))

    known = ["a/g128/M1", "a/g128/M16", "b/g128/M1", "m.qkv/g128/M16", "m.o/g128/M1"]
    report = GateReport(
        "",
        "",
        "",
        "",
        "",
        ["r"],
        [
            verdict(Outcome.PASSED, cell="b/g128/M1", layer="b"),
            verdict(Outcome.FAILED, cell="a/g128/M16", layer="a"),
            verdict(Outcome.INCONCLUSIVE, layer="m", M=16),
            verdict(Outcome.FAILED),
        ],
    )
    assert cells_to_repeat(report, known) == ("a/g128/M16", "m.qkv/g128/M16")


def test_measuring_again_pools_the_blocks_of_all_processes_and_keeps_pairs_paired(tmp_path):
    first = [make_record("cublas_fp16", 1, 3e-5, blocks=40), make_record("marlin", 1, 1e-5, blocks=25)]
    again = [make_record("cublas_fp16", 1, 3e-5, blocks=30), make_record("marlin", 1, 1e-5, blocks=30)]
    run = repeated(RunSpec(first).write(tmp_path), again)
    fp16, marlin = ({block.index for block in record.blocks} for record in run.records)
    assert (len(fp16), len(marlin)) == (70, 55)
    assert marlin < fp16
    assert {index for index in marlin if index >= 40} == set(range(40, 70))


def test_what_was_ever_wrong_stays_wrong_and_what_only_crashed_gets_its_chance():
    good = make_record("marlin", 1, 1e-5)
    wrong, crashed = (make_record("marlin", 1, 1, status=status) for status in (Status.WRONG, Status.CRASHED))
    assert pooled(wrong, good).status is Status.WRONG
    assert pooled(good, wrong).status is Status.WRONG
    assert pooled(crashed, good).status is Status.OK
    assert pooled(good, crashed).status is Status.CRASHED


# -- where people look -----------------------------------------------------------------------------------


@pytest.fixture
def mixed(h200):
    return judge(
        case(
            h200,
            rule("absolute", select={"backend": "marlin"}, at_least=0.6),
            rule("right"),
            rule("relative"),
        )
    )


def test_the_table_begins_with_what_falls_shortest_never_with_the_alphabet(mixed):
    lines = gate_table(mixed)[0].lines
    assert lines[0].cells[0] == "fail"
    order = [line.cells[0] for line in lines]
    assert order == sorted(order, key=["fail", "inconclusive", "pass", "not applicable"].index)
    failing = [verdict for verdict in mixed.by_severity if verdict.outcome is Outcome.FAILED]
    assert [one.shortfall for one in failing] == sorted((one.shortfall for one in failing), reverse=True)
    assert failing[0].shortfall == pytest.approx(1 - failing[0].value / 0.6)
    assert failing[0].shortfall > failing[-1].shortfall > 0
    assert Verdict(0, "relative", "", Outcome.FAILED, Subject(), value=1.0, limit=0.0).shortfall == 0.0


def test_the_table_leaves_out_passes_alone_and_counts_them(mixed):
    whole, _ = gate_table(mixed)
    short, left_out = gate_table(mixed, 2)
    grave = mixed.count(Outcome.FAILED) + mixed.count(Outcome.INCONCLUSIVE)
    assert len(short.lines) == grave + 2
    assert left_out == len(whole.lines) - grave - 2 > 0
    assert short.lines == whole.lines[: grave + 2]


def test_markdown_keeps_its_limit_with_the_gravest_first_and_says_what_it_left_out(mixed):
    whole = gate_markdown(mixed)
    assert len(whole.encode()) <= COMMENT_LIMIT_BYTES
    assert "<details>" in whole
    short = gate_markdown(mixed, 3000)
    assert len(short.encode()) <= 3000
    assert "more: see the JSON" in short
    assert mixed.by_severity[0].subject.cell in short


def test_what_records_say_cannot_become_markup_or_a_command():
    nasty = "</summary><script>alert(1)</script> | @everyone `x` \n::error::fake"
    verdict = Verdict(
        0, "right", nasty, Outcome.FAILED, Subject(cell=nasty, backend="b"), reason=nasty, code=ExitCode.WRONG_RESULT
    )
    report = GateReport("p", "run`x`", "f", nasty, "c", [nasty], [verdict])
    text = gate_markdown(report)
    assert "<script>" not in text
    assert "@everyone" not in text
    (line,) = github_annotations(report)
    assert "\n" not in line
    assert "%0A" in line
    test = Xml.fromstring(junit(report).partition("\n")[2]).find("testsuite/testcase")
    assert "<script>" in test.attrib["name"]
    assert json.loads(gate_json(report))["verdicts"][0]["reason"] == nasty


def test_junit_has_a_test_for_each_rule_and_cell_and_strict_fails_the_open_ones(mixed):
    suites = Xml.fromstring(junit(mixed).partition("\n")[2])
    tests = suites.findall("testsuite/testcase")
    assert len(tests) == len(mixed.verdicts)
    assert len(suites.findall("testsuite/testcase/failure")) == mixed.count(Outcome.FAILED)
    strict = GateReport(**(mixed.__dict__ | {"strict": True}))
    failures = Xml.fromstring(junit(strict).partition("\n")[2]).findall("testsuite/testcase/failure")
    assert len(failures) == mixed.count(Outcome.FAILED) + mixed.count(Outcome.INCONCLUSIVE)


def test_json_carries_every_verdict_and_the_code(mixed):
    data = json.loads(gate_json(mixed))
    assert len(data["verdicts"]) == len(mixed.verdicts)
    assert data["exit_code"] == mixed.exit_code
    assert data["failed"] == mixed.count(Outcome.FAILED)


def test_annotations_stay_within_what_github_shows():
    verdicts = [Verdict(0, "right", "", Outcome.FAILED, Subject(cell=str(number))) for number in range(50)]
    random.Random(0).shuffle(verdicts)
    report = GateReport("p", "r", "f", "d", "c", ["rule"], verdicts)
    lines = list(github_annotations(report))
    assert len(lines) == MOST_ANNOTATIONS
    assert all(line.startswith("::error title=") for line in lines)


def test_trend_services_get_times_with_bounds_and_no_published_value(h200):
    rows = case(h200, rule("right")).rows
    metrics = json.loads(bencher_metric_format(rows))
    one = metrics["square_8k/g128/M16 marlin"]
    assert one["latency"]["value"] == pytest.approx(17_700, rel=0.01)
    assert one["latency"]["lower_value"] < one["latency"]["value"] < one["latency"]["upper_value"]
    assert one["speedup"]["value"] == pytest.approx(34.9 / 17.7, rel=0.01)
    values = {entry["name"]: entry for entry in json.loads(github_action_benchmark(rows))}
    assert values["square_8k/g128/M16 marlin"]["unit"] == "µs"
    quoted = case(read_run(PAPER / "artifact_2024_boost"), rule("right")).rows
    assert json.loads(bencher_metric_format(quoted)) == {}
    assert json.loads(github_action_benchmark(quoted)) == []


def test_every_kind_of_rule_reads_as_a_sentence():
    assert rule_text(rule("absolute", select={"backend": "marlin", "M": {"at_most": 32}}, at_least=0.95)) == (
        "marlin, M ≤ 32: at least 95% of ideal"
    )
    assert rule_text(rule("knee", select={"M": [1, {"pow2": [2, 4]}]}, at_least=28)) == (
        "knee of M in 1, 2, 4: at least M = 28"
    )
    assert "llama-2-7b" in rule_text(rule("model", model="llama-2-7b", at_least=2.5))
    assert "1.0%" in rule_text(rule("relative"))
    assert rule_text(rule("right", clocks="locked")) == "everything: right answers, clocks locked"


def test_the_roofs_that_ideals_stand_on_are_the_runs_own(h200):
    assert h200.meta.ceilings == H200_CEILINGS
    assert h200.meta.origin is Origin.MEASURED


def test_a_run_of_another_version_of_the_suite_is_judged_with_a_note(tmp_path):
    records = [make_record(backend, M, 1e-5) for backend in ("cublas_fp16", "marlin") for M in (1, 16)]
    made, asked = RunSpec(records).write(tmp_path), suite()
    assert "another version of suite h200" in judge(case(made, rule("right"), suite=asked)).notes[0]
    same = made.__class__(made.folder, made.meta.model_copy(update={"suite_digest": asked.digest}), made.records)
    assert judge(case(same, rule("right"), suite=asked)).notes == []


def test_missing_records_are_counted(tmp_path):
    made = RunSpec([make_record("cublas_fp16", 1, 1e-5)]).write(tmp_path)
    assert "and 2 more, and the run" in judge(case(made, rule("right"), suite=suite())).by_severity[0].reason
    nearly = [make_record("cublas_fp16", M, 1e-5) for M in (1, 16)] + [make_record("marlin", 1, 1e-5)]
    report = judge(case(RunSpec(nearly, name="nearly").write(tmp_path), rule("right"), suite=suite()))
    assert " more" not in report.by_severity[0].reason


def test_bounds_are_judged_under_the_headline_timer_or_the_only_one_there_is(tmp_path):
    def cell(timer, time):
        return [make_record("cublas_fp16", 1, 3e-5, timer=timer), make_record("marlin", 1, time, timer=timer)]

    asked = rule("absolute", select={"backend": "marlin"}, at_least=0.1, ideal=3.87)
    both = judge(case(RunSpec([*cell("cold", 2e-5), *cell("kernel", 1e-5)]).write(tmp_path), asked))
    assert [round(verdict.value * 3.87, 1) for verdict in both.verdicts] == [3.0]
    only = judge(case(RunSpec(cell("host", 2e-5), name="host").write(tmp_path), asked))
    assert [round(verdict.value * 3.87, 1) for verdict in only.verdicts] == [1.5]
