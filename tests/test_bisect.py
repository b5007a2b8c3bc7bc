"""The search for the commit that made a kernel slower, in real repositories, on an invented device."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from cli_call import caller

from marlin_bench.bisect import Standing, cells_of, fails, standing
from marlin_bench.bisect_trees import BisectError, Repository
from marlin_bench.exit_codes import ExitCode
from marlin_bench.gate_rules import KneeRule, RelativeRule, RightRule
from marlin_bench.suite import parse_suite
from marlin_bench.verdict import Outcome, Subject, Verdict

TESTS = Path(__file__).parent
SUITE = """\
device: {kind: cuda, name: H200}
layers: [{name: square_8k, K: 8192, N: 8192}]
M: [1, 16]
backends: [cublas_fp16, marlin]
"""
RULE = "{rule: relative, select: {backend: marlin}}"
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]


def git(folder, *words):
    done = subprocess.run([*GIT, "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def state_of(folder):
    """Everything of a repository that a search could leave changed."""
    status = git(folder, "status", "--porcelain", "--ignored")  # may refresh the index, which is read after it
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}
    return (
        files,
        status,
        (folder / ".git" / "index").read_bytes(),
        git(folder, "rev-parse", "HEAD"),
        git(folder, "symbolic-ref", "HEAD"),
        git(folder, "for-each-ref"),
        git(folder, "worktree", "list"),
        sorted(path.name for path in (folder / ".git").iterdir()),
    )


@pytest.fixture
def repository(tmp_path):
    """Make a repository with a commit for each text of kernel.txt; gives its folder and the commits."""

    def make(*kernels):
        folder = tmp_path / "repository"
        folder.mkdir()
        git(folder, "init", "-q", "-b", "main")
        commits = []
        for number, kernel in enumerate(kernels):
            (folder / "kernel.txt").write_text(kernel + "\n")
            (folder / "notes.txt").write_text(f"change {number}\n")
            git(folder, "add", ".")
            git(folder, "commit", "-q", "-m", f"change {number}")
            commits.append(git(folder, "rev-parse", "HEAD"))
        return folder, commits

    return make


@pytest.fixture
def bisect(monkeypatch, capsys, tmp_path):
    """Search as a user does; gives (exit code, stdout, stderr) and leaves no clone behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "h200.yaml").write_text(SUITE)
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "measured"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), str(TESTS.parent))))
    monkeypatch.setattr("marlin_bench.cli.bisect.MEASURE", (str(TESTS / "stand_in_run.py"),))
    call = caller(monkeypatch, capsys, tmp_path)

    def search(folder, good, bad, *options, rule=RULE, machine=None):
        if machine is not None:
            (tmp_path / "machine").write_text(machine)
            monkeypatch.setenv("STAND_IN_MACHINE", str(tmp_path / "machine"))
        before = state_of(folder)
        words = ("bisect", good, bad, "--suite", tmp_path / "h200.yaml", "--rule", rule, "-C", folder, *options)
        found = call(*words)
        assert state_of(folder) == before
        assert list(scratch.iterdir()) == []
        return found

    return search


FAST, SLOW = "slower = 0.0", "slower = 0.05"


def test_the_first_slow_commit_is_found_with_both_ends_measured_at_every_step(repository, bisect, tmp_path):
    folder, commits = repository(FAST, FAST, FAST, SLOW, SLOW, SLOW)
    code, out, err = bisect(folder, commits[0], "main", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["first_bad"] == commits[3]
    assert f"first bad commit: {commits[3]} change 3" in err
    assert "GOOD and BAD differ in 1 of 2: square_8k/g128/M16 marlin\n" in err
    assert found["followed"] == ["square_8k/g128/M16 marlin"]
    assert {step["commit"]: step["verdict"] for step in found["steps"]} == {
        commit: "bad" if commits.index(commit) >= 3 else "good"
        for commit in (step["commit"] for step in found["steps"])
    }
    assert all(step["value"] == pytest.approx(1.05, abs=0.005) for step in found["steps"] if step["verdict"] == "bad")
    measured = [line.split() for line in (tmp_path / "measured").read_text().splitlines()]
    # the ends in all cells, then good, commit and bad in the cells that differ
    assert [line[1] for line in measured] == ["good", "bad", *["good", "commit", "bad"] * len(found["steps"])]
    assert [len(line) - 3 for line in measured] == [2, 2, *[1] * (3 * len(found["steps"]))]
    assert {line[2] for line in measured if line[1] == "good"} == {commits[0][:10]}
    assert {line[2] for line in measured if line[1] == "bad"} == {commits[-1][:10]}
    replayed = Path(found["kept"]) / "git_bisect_log"
    assert commits[3][:7] in replayed.read_text()


def test_neighbours_need_no_step_and_the_table_is_empty_then(repository, bisect):
    folder, commits = repository(FAST, SLOW)
    code, _, err = bisect(folder, commits[0], commits[1])
    assert code == 0
    assert f"first bad commit: {commits[1]}" in err


def test_an_ambiguous_commit_stops_the_search(repository, bisect):
    folder, commits = repository(FAST, "slower = noisy", SLOW)
    code, out, err = bisect(folder, commits[0], commits[2])
    assert code == 4
    assert out.splitlines()[1].split()[:2] == [commits[1][:10], "ambiguous"]
    assert "stopped, ambiguous at" in err
    assert "first bad" not in err


def test_ends_that_no_longer_differ_stop_the_search(repository, bisect):
    folder, commits = repository(FAST, FAST, SLOW)
    code, _, err = bisect(folder, commits[0], commits[2], machine="moved")
    assert code == 4
    assert "no longer differ" in err


@pytest.fixture
def without_pip(monkeypatch):
    """Environments without a pip of their own, which takes seconds to install."""
    create = venv.create
    monkeypatch.setattr("venv.create", lambda folder, **options: create(folder, **{**options, "with_pip": False}))


def test_what_does_not_build_is_skipped(repository, bisect, without_pip):
    folder, commits = repository(FAST, FAST, FAST + "\nbroken = 1", SLOW, SLOW)
    build = "grep -q broken kernel.txt && { echo 'error: no such header'; exit 1; }; touch built"
    code, out, err = bisect(folder, commits[0], commits[4], "--build", build, "--json")
    found = json.loads(out)
    skipped = [step for step in found["steps"] if step["verdict"] == "skip"]
    assert [step["commit"] for step in skipped] == [commits[2]]
    assert "error: no such header" in skipped[0]["reason"]
    # between the last good commit and the first bad one lies the one that does not build
    assert code == 4
    assert found["first_bad"] is None
    assert set(found["suspects"]) == {commits[2], commits[3]}
    assert "only skipped commits are left" in err


def test_a_crash_and_a_lost_run_are_skipped_and_a_wrong_answer_is_the_rules_business(repository, bisect):
    folder, commits = repository(FAST, FAST, "slower = 0.0\nstatus = crashed", "slower = 0.0\nstatus = wrong")
    code, out, _ = bisect(folder, commits[0], commits[3], "--json")
    verdicts = {step["commit"]: step["verdict"] for step in json.loads(out)["steps"]}
    assert verdicts[commits[2]] == "skip"
    assert code == 4
    code, out, _ = bisect(folder, commits[0], commits[3], "--json", rule="{rule: right, select: {backend: marlin}}")
    assert (code, json.loads(out)["first_bad"]) == (0, commits[2])


def test_each_commit_is_built_in_an_environment_of_its_own(repository, bisect, tmp_path):
    folder, commits = repository(FAST, SLOW)
    seen = tmp_path / "prefixes"
    build = f"python -c 'import sys, pydantic; print(sys.prefix)' >> {seen} && python -m pip --version >> {seen}.pip"
    assert bisect(folder, commits[0], commits[1], "--build", build)[0] == 0
    prefixes = seen.read_text().split()
    assert len(set(prefixes)) == 2
    assert sys.prefix not in prefixes


def test_an_end_that_does_not_build_ends_with_5(repository, bisect, without_pip):
    folder, commits = repository(FAST, FAST, SLOW)
    code, _, err = bisect(folder, commits[0], commits[2], "--build", "echo no compiler; false")
    assert code == 5
    assert "GOOD" in err
    assert "no compiler" in err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_and_a_cancelled_job_leave_everything_as_it_was(repository, bisect, name):
    folder, commits = repository(FAST, FAST, SLOW, SLOW)
    code, _, err = bisect(folder, commits[0], commits[3], machine=name)
    assert code == 130
    assert "Traceback" not in err


def test_a_device_that_is_gone_ends_the_search_with_6(repository, bisect):
    folder, commits = repository(FAST, FAST, SLOW, SLOW)
    code, _, err = bisect(folder, commits[0], commits[3], machine="no device")
    assert code == 6
    assert "fallen off the bus" in err


def test_an_end_that_cannot_be_measured_again_ends_with_5(repository, bisect):
    folder, commits = repository(FAST, FAST, SLOW)
    code, _, err = bisect(folder, commits[0], commits[2], machine="lost good")
    assert code == 5
    assert "GOOD cannot be measured (the disk is full)" in err


def test_questions_without_an_answer_are_refused(repository, bisect, tmp_path):
    folder, commits = repository(FAST, FAST, SLOW)
    for words, sentence in (
        ((commits[0], commits[1]), "BAD .* passes the rule"),
        ((commits[2], commits[0]), "no ancestor"),
        ((commits[0], commits[0]), "the same commit"),
        ((commits[0], "nowhere"), "no commit 'nowhere'"),
    ):
        code, _, err = bisect(folder, *words)
        assert code == 2
        assert re.search(sentence, err), err
    knee = "{rule: knee, select: {backend: marlin}, at_least: 500}"
    code, _, err = bisect(folder, commits[0], commits[2], rule=knee)
    assert (code, "fails the rule as BAD does" in err) == (2, True)
    assert bisect(folder, commits[0], commits[2], rule="{rule: relativ}")[0] == 2
    code, _, err = bisect(folder, commits[0], commits[2], rule="{rule: relative, select: {backend: machete}}")
    assert (code, "selects nothing" in err) == (2, True)


def test_uncommitted_changes_are_refused(repository, bisect):
    folder, commits = repository(FAST, SLOW)
    (folder / "kernel.txt").write_text("slower = 0.5\n")
    code, _, err = bisect(folder, commits[0], commits[1])
    assert code == 2
    assert "uncommitted changes (kernel.txt)" in err


def test_a_folder_without_a_repository_is_refused(tmp_path):
    with pytest.raises(BisectError, match="no git repository"):
        Repository.around(tmp_path)


# -- what a commit is ------------------------------------------------------------------------------------


def verdict(outcome, code=ExitCode.DONE, value=1.0, reason=""):
    return Verdict(0, "relative", "", outcome, Subject("c"), reason=reason, value=value, limit=1.01, code=code)


RELATIVE = RelativeRule(rule="relative")
PASS, OPEN = verdict(Outcome.PASSED), verdict(Outcome.INCONCLUSIVE)
SLOWER = verdict(Outcome.FAILED, ExitCode.GATE_FAILED, 1.05)
ONE, TWO = Subject("one"), Subject("two")


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ({ONE: PASS, TWO: PASS}, Standing.GOOD),
        ({ONE: PASS, TWO: SLOWER}, Standing.BAD),
        ({ONE: OPEN, TWO: SLOWER}, Standing.BAD),
        ({ONE: PASS, TWO: OPEN}, Standing.AMBIGUOUS),
        ({ONE: PASS}, Standing.SKIPPED),
        ({ONE: PASS, TWO: verdict(Outcome.FAILED, ExitCode.PARTLY_FAILED)}, Standing.SKIPPED),
        ({ONE: PASS, TWO: verdict(Outcome.FAILED, ExitCode.NOTHING_MEASURED)}, Standing.SKIPPED),
        ({ONE: PASS, TWO: verdict(Outcome.FAILED, ExitCode.WRONG_RESULT)}, Standing.BAD),
    ],
)
def test_a_commit_is_what_the_cells_say_in_which_the_ends_differ(here, expected):
    ends = {ONE: PASS, TWO: PASS}, {ONE: SLOWER, TWO: SLOWER}
    assert standing(RELATIVE, [ONE, TWO], ends[0], here, ends[1])[0] is expected


def test_a_cell_in_which_the_ends_no_longer_differ_does_not_count():
    here = {ONE: SLOWER, TWO: PASS}
    slow = {ONE: SLOWER, TWO: SLOWER}
    for good, bad in (({ONE: PASS, TWO: PASS}, {ONE: OPEN, TWO: SLOWER}), ({ONE: OPEN, TWO: PASS}, slow)):
        assert standing(RELATIVE, [ONE, TWO], good, here, bad)[0] is Standing.GOOD
    assert standing(RELATIVE, [ONE], {ONE: PASS}, here, {ONE: PASS})[0] is Standing.AMBIGUOUS


def test_a_crash_breaks_the_rule_that_asks_for_right_answers_and_no_other():
    crash = verdict(Outcome.FAILED, ExitCode.PARTLY_FAILED)
    assert fails(RightRule(rule="right"), crash)
    assert not fails(RELATIVE, crash)
    assert not fails(RELATIVE, PASS)
    assert not fails(RELATIVE, None)


def test_only_the_cells_that_a_rule_is_about_are_measured():
    suite = parse_suite(SUITE, source="h200.yaml", name="h200")
    one = RelativeRule.model_validate({"rule": "relative", "select": {"backend": "marlin", "M": 16}})
    assert cells_of(one, suite) == ("square_8k/g128/M16",)
    assert len(cells_of(KneeRule.model_validate({"rule": "knee", "at_least": 1}), suite)) == 2
    with pytest.raises(BisectError, match="selects nothing"):
        cells_of(RelativeRule.model_validate({"rule": "relative", "select": {"M": 3}}), suite)
