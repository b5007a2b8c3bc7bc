"""The documentation builds without a warning, its links lead somewhere, and its commands work."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "docs" / f"{name}.md" for name in
         ("index", "glossary", "counting", "roofline", "answers", "exit-codes", "faq", "extending")]  # fmt: skip
COMMANDS = [
    (page.stem, line)
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder where `smoke` was run once: pages may be read in any order."""
    place = tmp_path_factory.mktemp("docs")
    done = call(["run", "smoke"], place)
    assert done.returncode == 0, done.stderr
    return place


def call(arguments, place):
    return subprocess.run(
        [sys.executable, "-m", "marlin_bench", *arguments],
        cwd=place, capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_the_pages_build_and_every_link_leads_somewhere(tmp_path):
    # warnings of mkdocs (a link to nowhere, a missing anchor) end a strict build
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis" not in page
    shutil.rmtree(tmp_path / "site")


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line}" for page, line in COMMANDS])
def test_a_command_of_the_docs_works(page, line, workplace):
    done = call(shlex.split(line)[1:], workplace)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_exit_codes_are_the_program_s():
    from marlin_bench.exit_codes import ExitCode

    table = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in table] == sorted(code.value for code in ExitCode)
