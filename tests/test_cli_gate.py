"""The gate and its relatives on the command line: what is printed, written, and how it ends."""

import json
import math
import sys
from pathlib import Path

import pytest
from synthetic_run import RunSpec, environment, h200_records, make_record

from marlin_bench import cli
from marlin_bench.record import Status

ROOT = Path(__file__).parent.parent
A10 = ROOT / "suites" / "a10.yaml"
PAPER = ROOT / "results" / "published" / "a10_paper"


@pytest.fixture
def run_cli(monkeypatch, capsys, tmp_path):
    """Call the program in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARLIN_BENCH_RESULTS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["marlin-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def policy(tmp_path):
    def write(*rules):
        path = tmp_path / "policy.yaml"
        path.write_text("gate:\n" + "".join(f"- {rule}\n" for rule in rules))
        return path

    return write


def test_the_papers_folder_is_judged_by_the_figures_of_the_suites_clock_policy(run_cli):
    code, out, err = run_cli("gate", A10, PAPER)
    assert code == 0
    assert "fig10_locked_885mhz" in err
    assert "6 passed, 0 failed, 0 inconclusive" in err
    assert "judged on published values" in err
    assert "96.0% of ideal (3.27x of 3.41x)" in out


def test_a_baseline_of_the_paper_fails_the_same_rule(run_cli, policy):
    rule = "{rule: absolute, select: {backend: awq, M: {at_most: 32}}, at_least: 0.95, clocks: locked}"
    code, out, err = run_cli("gate", policy(rule), PAPER / "fig10_locked_885mhz")
    assert code == 1
    assert out.splitlines()[1].startswith("fail")
    assert "0 passed, 6 failed" in err


def test_every_file_is_written_and_github_gets_its_summary(run_cli, policy, tmp_path, monkeypatch):
    run = RunSpec(h200_records(layers=("square_8k",))).write(tmp_path / "results")
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    names = {
        "--md": "m.md",
        "--junit": "j.xml",
        "--json-file": "g.json",
        "--bmf": "b.json",
        "--action-benchmark": "a.json",
    }
    files = [word for option, name in names.items() for word in (option, tmp_path / name)]
    rule = "{rule: absolute, select: {backend: marlin}, at_least: 0.6}"
    code, out, err = run_cli("gate", policy(rule), run.folder, "--github", "--json", *files)
    assert code == 1
    assert json.loads(out) == json.loads((tmp_path / "g.json").read_text())
    assert "::error title=" in err
    assert summary.read_text().startswith("### marlin-bench: gate failed")
    assert all((tmp_path / name).stat().st_size for name in names.values())


@pytest.mark.parametrize(
    ("records", "rule", "code", "sentence"),
    [
        ([], "{rule: right}", 5, "holds no records"),
        ([make_record("marlin", 1, 1, status=Status.WRONG, reason="NaN")], "{rule: right}", 3, "a wrong result"),
        ([make_record("marlin", 1, 1, status=Status.CRASHED)], "{rule: right}", 7, "crashed"),
        ([make_record("marlin", 1, 1e-5)], "{rule: right, select: {backend: x}}", 5, "nothing to judge"),
        ([make_record("marlin", 1, 1e-5)], "{rule: relative}", 4, "gate inconclusive"),
        ([make_record("marlin", 1, 1e-5)], "{rule: rihgt}", 2, "policy.yaml:2"),
        (
            [make_record("marlin", 1, 1e-5), make_record("marlin", 2, 1e-5, device="a10")],
            "{rule: right}",
            2,
            "2 devices",
        ),
    ],
)
def test_each_broken_input_has_its_sentence_and_code(run_cli, policy, tmp_path, records, rule, code, sentence):
    run = RunSpec(records).write(tmp_path / "results")
    found, _, err = run_cli("gate", policy(rule), run.folder)
    assert found == code
    assert sentence in err


def test_hundreds_of_passes_are_counted_and_listed_on_demand(run_cli, policy, tmp_path):
    run = RunSpec([make_record("marlin", M, 1e-5, blocks=6) for M in range(1, 61)]).write(tmp_path / "results")
    code, out, err = run_cli("gate", policy("{rule: right}"), run.folder)
    assert (code, len(out.splitlines())) == (0, 1 + 40)
    assert "20 more passed or were not applicable: --all lists them" in err
    assert len(run_cli("gate", policy("{rule: right}"), run.folder, "--all")[1].splitlines()) == 1 + 60


def cut(text):
    return text[:-40]


def first_time(value):
    """Put `value` in the place of the first time of the last record."""

    def change(text):
        *lines, last = text.splitlines()
        record = json.loads(last)
        record["blocks"][0]["times"] = value
        return "\n".join([*lines, json.dumps(record)]) + "\n"

    return change


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (
            first_time([math.nan]),
            5,
            "records.jsonl:2 lacks a value (blocks.0.times.0: Input should be a finite",
        ),
        (first_time([math.inf]), 5, "records.jsonl:2 lacks a value"),
        (first_time([None]), 5, "records.jsonl:2 lacks a value"),
        (first_time([]), 5, "records.jsonl:2 lacks a value"),
        (first_time([0.0]), 2, "records.jsonl:2 is not a record (blocks.0.times.0: Input should be greater than 0)"),
        (first_time(["soon"]), 2, "records.jsonl:2 is not a record"),
        (lambda text: text.replace('"M":1,', "", 1), 5, "records.jsonl:1 lacks a value (M: Field required)"),
        (lambda text: text.replace('"schema_version":1', '"schema_version":9', 1), 2, "schema version 9"),
        (lambda text: "{broken\n" + text, 2, "records.jsonl:1 is not a record"),
        (lambda text: "", 5, "holds no records"),
        (cut, 5, "the rule selects no record"),
    ],
)
def test_each_damage_to_a_file_has_its_sentence_and_code(run_cli, policy, tmp_path, change, code, sentence):
    run = RunSpec([make_record(name, 1, 1e-5) for name in ("cublas_fp16", "marlin")]).write(tmp_path / "results")
    path = run.folder / "records.jsonl"
    path.write_text(change(path.read_text()))
    found, out, err = run_cli("gate", policy("{rule: right, select: {backend: marlin}}"), run.folder)
    assert found == code
    assert sentence in out + err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("clocks", "code", "sentence"),
    [("any", 0, "1 passed"), ("locked", 4, "clocks were not locked, and the rule asks for it")],
)
def test_a_clock_policy_that_the_rule_does_not_ask_for_is_inconclusive(
    run_cli, policy, tmp_path, clocks, code, sentence
):
    run = RunSpec([make_record("marlin", 1, 1e-5)]).write(tmp_path / "results")
    found, out, err = run_cli("gate", policy(f"{{rule: right, clocks: {clocks}}}"), run.folder)
    assert found == code
    assert sentence in out + err


def test_a_folder_without_a_run_ends_with_5_and_a_file_that_is_no_policy_with_2(run_cli, policy, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = run_cli("gate", policy("{rule: right}"), tmp_path / "empty")
    assert (code, "holds no run" in err) == (5, True)
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    code, _, err = run_cli("gate", tmp_path / "noise.bin", tmp_path / "empty")
    assert (code, len(err.splitlines())) == (2, 1)


def test_a_run_of_another_device_than_the_suites_ends_with_6(run_cli, tmp_path):
    run = RunSpec([make_record("marlin", 1, 1e-5)]).write(tmp_path / "results")
    code, _, err = run_cli("gate", A10, run.folder)
    assert code == 6
    assert "is for A10" in err


def test_an_accepted_run_is_what_the_gate_compares_with(run_cli, policy, tmp_path):
    for name, slower in (("20261121T080000Z_a", 1.0), ("20261121T090000Z_b", 1.05)):
        records = [
            make_record(backend, 16, time * (slower if backend == "marlin" else 1.0), run=name, noise=0.002)
            for backend, time in (("cublas_fp16", 3e-4), ("marlin", 1e-4))
        ]
        RunSpec(records, name=name).write(tmp_path / "results")
    assert run_cli("baseline", "set", "20261121T080000Z_a")[0] == 0
    guard = policy("{rule: relative, select: {backend: marlin}}")
    code, out, _ = run_cli("gate", guard, "20261121T090000Z_b")
    assert code == 1
    assert "5.1% in time at one clock" in out
    assert run_cli("gate", guard, "20261121T080000Z_a")[0] == 0
    assert run_cli("baseline", "set", "20261121T090000Z_b")[0] == 2
    assert "20261121T080000Z_a" in run_cli("baseline", "list")[1]
    code, out, err = run_cli("compare", "20261121T080000Z_a", "20261121T090000Z_b")
    assert code == 0
    assert out.splitlines()[1].startswith("worse")
    assert "1 worse" in err
    assert run_cli("compare", "20261121T080000Z_a", "20261121T090000Z_b", "--fail-on-worse")[0] == 1
    assert run_cli("noise", "20261121T080000Z_a", "20261121T090000Z_b", "-o", tmp_path / "n.json")[0] == 0
    assert run_cli("gate", guard, "20261121T090000Z_b", "--noise", tmp_path / "n.json")[0] == 4


def test_unlike_machines_are_compared_only_when_asked_for(run_cli, tmp_path):
    for name, device in (("a_run", "NVIDIA H200"), ("b_run", "NVIDIA H100")):
        RunSpec([make_record("marlin", 16, 1e-4)], name=name, environment=environment(device_name=device)).write(
            tmp_path / "results"
        )
    code, _, err = run_cli("compare", "a_run", "b_run")
    assert code == 2
    assert "device was NVIDIA H200 and is NVIDIA H100" in err
    assert run_cli("compare", "a_run", "b_run", "--unlike")[0] == 0


def test_runs_of_two_suites_are_compared_where_they_meet(run_cli, tmp_path):
    shared = [make_record(backend, 16, time) for backend, time in (("cublas_fp16", 3e-4), ("marlin", 1e-4))]
    for name, suite, own in (("20261121T080000Z_a_1", "a", 32), ("20261121T090000Z_b_1", "b", 64)):
        spec = RunSpec([*shared, make_record("marlin", own, 1e-4)], name=name, suite=suite)
        written = spec.write(tmp_path / "results")
        meta = written.meta.model_copy(update={"suite_digest": suite * 16})
        (written.folder / "run.json").write_text(meta.model_dump_json())
    code, out, err = run_cli("compare", "a", "b", "--json")  # a suite's name stands for its newest run
    assert code == 0
    assert {(one["cell"], one["backend"]) for one in json.loads(out)} == {
        ("square_8k/g128/M16", "cublas_fp16"),
        ("square_8k/g128/M16", "marlin"),
    }
    assert "left out: 1 results that only 20261121T080000Z_a_1 has (marlin)" in err
    assert "left out: 1 results that only 20261121T090000Z_b_1 has (marlin)" in err


def test_what_tuning_chose_anew_is_told(run_cli, tmp_path):
    for name, layout in (("20261121T080000Z_a", "KN"), ("20261121T090000Z_b", "NK")):
        one = make_record("cublas_fp16", 16, 3e-4).model_copy(update={"choice": {"layout": layout}})
        RunSpec([one], name=name).write(tmp_path / "results")
    assert "layout KN → NK" in run_cli("compare", "20261121T080000Z_a", "20261121T090000Z_b")[1]
