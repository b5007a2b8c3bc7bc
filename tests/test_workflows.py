"""The GitHub action and workflows: valid, consistent with each other, their shell sound, and their steps run here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
ACTION = ROOT / "action.yml"
WORKFLOWS = [ROOT / ".github" / "workflows" / "ci.yml", *sorted((ROOT / "examples" / "ci").glob("*.yml"))]
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}")
TINY = """\
device: {kind: cpu}
layers: [{name: small, K: 256, N: 256}]
M: [1]
backends: [dense_fp32, tinygemm_cpu]
sampling: {min_blocks: 6, max_blocks: 6, block_seconds: 0.0001, cell_seconds: 0.05}
gate: [{rule: right}]
"""


def read(path):
    # the core schema of YAML 1.2 keeps `on` a word
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def run_steps():
    """Every step that runs a script: where it stands and what it runs."""
    for path in [ACTION, *WORKFLOWS]:
        data = read(path)
        jobs = [data["runs"]] if path == ACTION else data["jobs"].values()
        for job in jobs:
            for step in job["steps"]:
                if "run" in step:
                    yield f"{path.name}: {step.get('name', step['run'][:20])}", step


@pytest.mark.parametrize("path", [ACTION, *WORKFLOWS], ids=lambda path: path.name)
def test_a_file_follows_githubs_schema(path):
    schema = "vendor.github-actions" if path == ACTION else "vendor.github-workflows"
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("step", [step for _, step in run_steps()], ids=[name for name, _ in run_steps()])
def test_a_script_is_sound_shell_and_holds_no_expression(step, tmp_path):
    # an expression inside a script is an injection: values come through `env`
    assert not EXPRESSION.search(step["run"])
    script = tmp_path / "step.sh"
    script.write_text("#!/usr/bin/env bash\nset -eo pipefail\n" + step["run"])
    assert shellcheck(script) == ""


def shellcheck(script):
    program = Path(sys.executable).parent / "shellcheck"
    return subprocess.run([program, "--severity=style", script], capture_output=True, text=True, check=False).stdout


def test_what_ci_runs_is_sound_shell():
    assert shellcheck(ROOT / ".ci" / "run") == ""


def test_inputs_steps_and_outputs_that_are_named_exist_and_are_used():
    action = read(ACTION)
    text = ACTION.read_text(encoding="utf-8")
    names = " ".join(EXPRESSION.findall(text)) + " ".join(str(step.get("if", "")) for step in action["runs"]["steps"])
    assert set(re.findall(r"\binputs\.([\w-]+)", names)) == set(action["inputs"])
    steps = {step["id"]: step for step in action["runs"]["steps"] if "id" in step}
    for step, output in re.findall(r"\bsteps\.([\w-]+)\.outputs\.([\w-]+)", names):
        assert f'echo "{output}=' in steps[step]["run"]
    assert all("shell" in step for step in action["runs"]["steps"] if "run" in step)
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            assert job["timeout-minutes"] <= 60
            for step in job["steps"]:
                if step.get("uses") == "./":
                    assert set(step["with"]) <= set(action["inputs"])
                    assert {name for name, one in action["inputs"].items() if one.get("required")} <= set(step["with"])


def value_of(expression, context):
    """An expression of those that the action is made of: names, `a || b` and `a == 'b'`."""
    expression = expression.strip()
    if "||" in expression:
        left, right = expression.split("||", 1)
        return value_of(left, context) or value_of(right, context)
    if "==" in expression:
        left, right = expression.split("==")
        return "true" if value_of(left, context) == right.strip().strip("'") else "false"
    return context.get(expression, "")


def run_action(folder, **given):
    """Run the scripts of action.yml as GitHub would, but for the installation; gives outputs and exit codes."""
    action = read(ACTION)
    program = folder / "bin" / "marlin-bench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m marlin_bench "$@"\n')
    program.chmod(0o755)
    context = {f"inputs.{name}": str(one.get("default", "")) for name, one in action["inputs"].items()}
    context |= {f"inputs.{name}": value for name, value in given.items()}
    codes = {}
    for step in action["runs"]["steps"]:
        if step.get("name") == "Install" or "run" not in step:
            continue
        if "if" in step and value_of(step["if"], context) != "true":
            continue
        output = folder / f"{step['id']}.output"
        output.touch()
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=folder, capture_output=True, text=True, timeout=280, check=False,
            env={
                **{name: value for name, value in os.environ.items() if name != "MARLIN_BENCH_RESULTS"},
                **{name: EXPRESSION.sub(lambda found: value_of(found[1], context), str(value))
                   for name, value in step.get("env", {}).items()},
                "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            },
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        codes[step["id"]] = done.returncode
        for line in output.read_text().splitlines():
            name, _, value = line.partition("=")
            context[f"steps.{step['id']}.outputs.{name}"] = value
    return context, codes


def test_the_example_without_a_gpu_gates_the_stored_runs(tmp_path):
    (job,) = read(ROOT / "examples" / "ci" / "stored.yml")["jobs"].values()
    given = next(step["with"] for step in job["steps"] if step.get("uses") == "./")
    given |= {name: str(ROOT / given[name]) for name in ("suite", "run")}
    context, codes = run_action(tmp_path, **given)
    assert codes == {"gate": 0}
    assert context["steps.gate.outputs.exit-code"] == "0"
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("### marlin-bench: gate passed")
    assert "judged on published values" in summary
    assert {path.name for path in (tmp_path / "marlin-bench-verdicts").iterdir()} == {
        "junit.xml", "gate.json", "comment.md", "bencher.json", "action-benchmark.json",
    }  # fmt: skip


def test_a_suite_is_measured_first_and_a_failing_gate_fails_the_job(tmp_path):
    suite = tmp_path / "tiny.yaml"
    suite.write_text(TINY)
    context, codes = run_action(tmp_path, suite=str(suite), retry="0")
    assert codes == {"measure": 0, "gate": 0}
    assert (tmp_path / context["steps.measure.outputs.folder"] / "records.jsonl").exists()
    slower = tmp_path / "policy.yaml"
    slower.write_text("gate: [{rule: absolute, select: {backend: tinygemm_cpu}, at_least: 1000, ideal: 1}]\n")
    (tmp_path / "again").mkdir()
    folder = str(tmp_path / context["steps.measure.outputs.folder"])
    context, codes = run_action(tmp_path / "again", suite=str(slower), run=folder)
    assert codes == {"gate": 1}
    assert context["steps.gate.outputs.exit-code"] == "1"


def test_the_expressions_are_read_as_github_reads_them():
    context = {"inputs.run": "", "steps.m.outputs.folder": "there"}
    assert value_of("inputs.run || steps.m.outputs.folder", context) == "there"
    assert value_of("inputs.run == ''", context) == "true"
    assert value_of("inputs.run == 'x'", context) == "false"
