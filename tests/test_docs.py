"""The documentation builds without a warning, its links lead somewhere, and its commands work.

Every command of every page is run, in the order of the page, in one folder: blocks marked `sh` or `bash`. Links to
other sites cannot be followed in CI: they must be well-formed and of a known site; MARLIN_BENCH_ONLINE=1 opens them.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from marlin_bench import cli

pytest.importorskip("mkdocs")

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
EVERYTHING = [
    *PAGES,
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "kernels" / "README.md",
]
SITES = {"keepachangelog.com", "arxiv.org", "github.com", "docs.nvidia.com", "developer.nvidia.com"}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAM = "marlin-bench "
NOT_RUN = {
    "marlin-bench clocks lock": "it would change this machine's clocks (test_clocks.py has a stand-in)",
    "marlin-bench clocks reset": "it would change this machine's clocks (test_clocks.py has a stand-in)",
    "marlin-bench clocks status": "it stands in a block with the two above",
    "marlin-bench bisect": "it needs a repository of kernels (test_bisect.py makes one)",
    "python tests/gpu/": "it needs a GPU",
    "pytest --marlin-backend": "test_example_backend.py runs it",
}
ANY_VERDICT = {0, 1, 4}  # of a run of milliseconds on a shared CPU
CONFIG = '{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, ' \
         '"num_attention_heads": 32, "num_key_value_heads": 32}'  # fmt: skip


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands(page):
    """Lines of the blocks that a reader would paste into a shell."""
    found = [
        line for kind, block in FENCE.findall(text_of(page)) if kind in {"sh", "bash"} for line in block.splitlines()
    ]
    return [line for line in found if line.strip() and not line.startswith("#")]


COMMANDS = [(page.relative_to(ROOT / "docs").as_posix(), line) for page in PAGES for line in commands(page)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what pages ask a reader to have: `smoke` was run, mine.yaml of docs/suites.md, a config.json."""
    place = tmp_path_factory.mktemp("docs")
    (place / "mine.yaml").write_text(FENCE.findall(text_of(ROOT / "docs" / "suites.md"))[0][1])
    (place / "config.json").write_text(CONFIG)
    before = Path.cwd(), dict(os.environ)
    os.chdir(place)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # tests share the cores: threads that spin for each other take many times as long
    )
    os.environ.pop("MARLIN_BENCH_RESULTS", None)
    yield cache(execute)  # what stands on several pages is run once
    os.chdir(before[0])
    os.environ.clear()
    os.environ.update(before[1])


def call(arguments):
    """The program in this process, which has everything imported: (exit code, stdout, stderr)."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["marlin-bench", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = argv
    return code, out.getvalue(), err.getvalue()


def execute(line):
    """One line of a page: the program in-process, `> FILE` obeyed, anything else in a shell."""
    if not line.startswith(PROGRAM):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr
    arguments = shlex.split(line, comments=True)[1:]
    target = None
    if ">" in arguments:
        place = arguments.index(">")
        target, arguments = arguments[place + 1], arguments[:place]
    code, out, err = call(arguments)
    if target is not None:
        Path(target).write_text(out)
    return code, out, err


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line}" for page, line in COMMANDS])
def test_a_command_of_the_docs_works(page, line, workplace):
    if any(line.startswith(start) for start in NOT_RUN):
        return
    assert workplace("marlin-bench run smoke")[0] == 0
    code, _, err = workplace(line.partition("  #")[0].strip())
    assert code in (ANY_VERDICT if line.startswith("marlin-bench gate") else {0}), err
    assert "Traceback" not in err


def test_what_is_not_run_is_named_with_its_reason():
    for page in EVERYTHING:
        for kind, block in FENCE.findall(text_of(page)):
            lines = [line for line in block.splitlines() if line.startswith(PROGRAM)]
            if kind not in {"sh", "bash"}:
                assert all(any(line.startswith(start) for start in NOT_RUN) for line in lines), (page.name, lines)


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


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.relative_to(ROOT / "docs").as_posix() not in menu] == []


def anchors(page):
    """The ids that headings get, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower().strip())) for heading in headings}


def links(page):
    return re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", FENCE.sub("", text_of(page)))


@pytest.mark.parametrize("page", EVERYTHING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_to_a_file_and_a_heading(page):
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", EVERYTHING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_are_there(page):
    folders = "docs|examples|kernels|marlin_bench|notebooks|results/published|suites|tests"
    for name in re.findall(rf"`((?:{folders})/[\w./*-]+)`", text_of(page)):
        assert list(ROOT.glob(name.rstrip("/"))), name


@pytest.mark.parametrize("page", EVERYTHING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_other_sites_are_well_formed_and_of_known_sites(page):
    for link in (link for link in links(page) if "://" in link):
        parts = urlsplit(link)
        assert parts.scheme == "https", link
        assert parts.hostname in SITES, f"{link}: add its site to SITES if it is one to trust"
        if os.environ.get("MARLIN_BENCH_ONLINE") == "1":
            request = urllib.request.Request(link, method="HEAD", headers={"User-Agent": "marlin-bench docs"})
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert answer.status < 400, link


def test_the_exit_codes_are_the_program_s():
    from marlin_bench.exit_codes import ExitCode

    table = re.findall(r"^\| (\d+) \|", text_of(ROOT / "docs" / "exit-codes.md"), re.MULTILINE)
    assert [int(code) for code in table] == sorted(code.value for code in ExitCode)
