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
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_it_has_commands():
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_works(line, results):
    command, _, comment = line.partition("#")
    arguments = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "marlin_bench", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "MARLIN_BENCH_RESULTS": str(results)},
    )  # fmt: skip
    needs_gpu = "needs a GPU" in comment or arguments[0] == "doctor"
    assert done.returncode in ({0, 6} if needs_gpu else {0}), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_a_link_of_the_readme_leads_somewhere(target):
    assert (ROOT / target).exists()
