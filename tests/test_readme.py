"""What the README tells people to type works, in its order, on a machine without a GPU."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("marlin-bench ")
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_it_has_commands():
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_works(line, workplace):
    command, _, comment = line.partition("#")
    arguments = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "marlin_bench", *arguments],
        cwd=workplace, capture_output=True, text=True, timeout=280, check=False,  # what is drawn lands there too
        env={**os.environ, "MARLIN_BENCH_RESULTS": str(workplace / "results"), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    needs_gpu = "needs a GPU" in comment or arguments[0] == "doctor"
    assert done.returncode in ({0, 6} if needs_gpu else {0}), done.stderr
    assert "Traceback" not in done.stderr


def test_the_guard_for_ci_works_as_pasted(tmp_path):
    (guard,) = re.findall(r"## Guard your kernel in CI\n\n```bash\n(.*?)```", README, re.DOTALL)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "marlin-bench"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m marlin_bench "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", guard],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
        env={
            **{name: value for name, value in os.environ.items() if name != "MARLIN_BENCH_RESULTS"},
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    # a CPU that others use may be slower, or too noisy to tell; two runs were made, and the second one was judged
    ending = re.search(r"(\d+) passed, (\d+) failed, (\d+) inconclusive", done.stderr)
    assert ending, done.stderr
    assert sum(map(int, ending.groups())) == 6 + 2  # right answers of three backends, one against the baseline
    assert re.search(r"exit code [14]", done.stdout) or "gate passed" in done.stderr
    assert (tmp_path / "results" / "baselines").is_dir()
    runs = [path.parent for path in (tmp_path / "results").rglob("run.json")]
    assert sum("baselines" not in path.parts and "retries" not in path.parts for path in runs) == 2


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_a_link_of_the_readme_leads_somewhere(target):
    assert (ROOT / target).exists()
