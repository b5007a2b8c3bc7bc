"""Clones for a bisection: of the good end, the bad end and the commit in question, each with a build of its own.

The repository that is searched is only read: clones borrow its objects, `git bisect` runs in one of them, and a build
installs into a virtual environment beside its clone. Everything lies in one temporary folder that is removed at the
end, however that comes.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from marlin_bench.provenance import COMMIT_VARIABLE

_LONGEST_REASON = 200
_HASH = r"[0-9a-f]{40,64}"


class BisectError(RuntimeError):
    """A search that cannot begin (exit 2); one sentence."""


class UntestableError(RuntimeError):
    """A commit that cannot be built or measured: skipped where it is in question; one sentence."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit and the first line of its message."""

    hash: str
    subject: str

    @property
    def name(self) -> str:
        """How people call it."""
        return f"{self.hash[:10]} {self.subject}".strip()


@dataclass(frozen=True, slots=True)
class Turn:
    """Where `git bisect` stands: a commit to try, or the first bad one, or those left that were all skipped."""

    trial: str | None = None
    first_bad: str | None = None
    suspects: tuple[str, ...] = ()


def _clean_environment() -> dict[str, str]:
    """The environment without what a git hook sets, which would send git to another repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"LC_ALL": "C.UTF-8"}  # git's sentences are read


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=_clean_environment(),
        )
    except OSError as error:
        raise BisectError(f"git cannot be run ({error.strerror}): install it") from error


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1][:_LONGEST_REASON] if lines else f"exit code {done.returncode}"


@dataclass(frozen=True)
class Repository:
    """The repository that is searched; nothing here writes to it."""

    folder: Path

    @classmethod
    def around(cls, folder: Path) -> Repository:
        """The repository that `folder` lies in; BisectError when it lies in none, or has uncommitted changes."""
        done = _git(folder, "rev-parse", "--show-toplevel")
        if done.returncode != 0:
            raise BisectError(f"{folder} is in no git repository: name one with --repository")
        found = cls(Path(done.stdout.strip()))
        status = ("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")  # leaves the index alone
        changed = _git(found.folder, *status).stdout.splitlines()
        if changed:
            raise BisectError(
                f"{found.folder} has uncommitted changes ({changed[0][3:]}"
                f"{f' and {len(changed) - 1} more' if len(changed) > 1 else ''}), which no commit holds: commit or "
                "stash them"
            )
        return found

    def commit(self, name: str) -> Commit:
        """The commit of that name; BisectError when there is none."""
        done = _git(self.folder, "log", "-1", "--format=%H %s", "--end-of-options", name, "--")
        if done.returncode != 0 or not done.stdout.strip():
            raise BisectError(f"{self.folder} has no commit '{name}': see `git log --oneline`")
        found, _, subject = done.stdout.strip().partition(" ")
        return Commit(found, subject)

    def refuse_unrelated(self, good: Commit, bad: Commit) -> None:
        """BisectError unless `good` is an ancestor of `bad`."""
        if good.hash == bad.hash:
            raise BisectError(f"GOOD and BAD are the same commit ({good.name}): there is nothing between them")
        if _git(self.folder, "merge-base", "--is-ancestor", good.hash, bad.hash).returncode != 0:
            raise BisectError(f"GOOD ({good.name}) is no ancestor of BAD ({bad.name}): exchange them, or name others")


@dataclass(frozen=True)
class Tree:
    """A clone in `folder`, whose build goes into `<folder>.venv`; without a build command no environment is made."""

    repository: Repository
    folder: Path
    build_command: str | None

    def clone(self) -> None:
        """Make the clone, without a checkout."""
        done = subprocess.run(
            ["git", "clone", "--quiet", "--shared", "--no-checkout", str(self.repository.folder), str(self.folder)],
            capture_output=True,
            text=True,
            check=False,
            env=_clean_environment(),
        )
        if done.returncode != 0:
            raise BisectError(f"{self.repository.folder} cannot be cloned ({_said(done)})")

    def check_out(self, commit: str) -> None:
        """Put the clone at a commit."""
        done = _git(self.folder, "checkout", "--quiet", "--detach", commit)
        if done.returncode != 0:
            raise UntestableError(f"cannot be checked out ({_said(done)})")

    def build(self, log: Path) -> None:
        """Run the build command in a tree without leftovers; UntestableError, with its last line, when it fails."""
        _git(self.folder, "clean", "-ffdxq")
        if self.build_command is None:
            return
        with log.open("w", encoding="utf-8") as handle:
            done = subprocess.run(
                self.build_command,
                shell=True,  # a command line as the user would type it
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            raise UntestableError(f"does not build ({last_line(log) or f'exit code {done.returncode}'})")

    @property
    def head(self) -> str:
        """The commit that is checked out."""
        return _git(self.folder, "rev-parse", "HEAD").stdout.strip()

    @property
    def python(self) -> str:
        """The interpreter that sees this tree's build."""
        return sys.executable if self._venv is None else str(self._venv / "bin" / "python")

    @property
    def environment(self) -> dict[str, str]:
        """Variables for what runs in the tree: its modules and its environment come first."""
        found = _clean_environment() | {COMMIT_VARIABLE: self.head}
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(self.folder), os.environ.get("PYTHONPATH"))))
        if self._venv is not None:
            found["VIRTUAL_ENV"] = str(self._venv)
            found["PATH"] = os.pathsep.join((str(self._venv / "bin"), os.environ.get("PATH", os.defpath)))
        return found

    @cached_property
    def _venv(self) -> Path | None:
        """An environment that sees everything installed here, and whose own packages come before it."""
        if self.build_command is None:
            return None
        folder = self.folder.with_name(self.folder.name + ".venv")
        venv.create(folder, with_pip=True, symlinks=True)
        packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        here = [*site.getsitepackages(), site.getusersitepackages()]
        # addsitedir, for it reads the .pth files of editable installs too; the name is read last
        lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in here)
        (packages / "zzz_installed_before.pth").write_text(lines, encoding="utf-8")
        return folder


class Search:
    """`git bisect`, run in the clone of the commit in question."""

    def __init__(self, tree: Tree, good: Commit, bad: Commit) -> None:
        self._tree = tree
        self.turn = self._read(_git(tree.folder, "bisect", "start", bad.hash, good.hash))

    def mark(self, word: str) -> None:
        """Tell `good`, `bad` or `skip` of the present commit."""
        _git(self._tree.folder, "clean", "-ffdxq")  # what a build left must not stand in the way of a checkout
        _git(self._tree.folder, "reset", "--hard", "--quiet")
        self.turn = self._read(_git(self._tree.folder, "bisect", word))

    def log(self) -> str:
        """What `git bisect replay` takes."""
        return _git(self._tree.folder, "bisect", "log").stdout

    def _read(self, done: subprocess.CompletedProcess[str]) -> Turn:
        text = done.stdout + done.stderr
        found = re.search(rf"^({_HASH}) is the first bad commit", text, re.MULTILINE)
        if found:
            return Turn(first_bad=found[1])
        _, is_stuck, left = text.partition("could be any of:")
        if is_stuck:
            return Turn(suspects=tuple(re.findall(rf"^({_HASH})$", left, re.MULTILINE)))
        if done.returncode != 0:
            raise BisectError(f"git bisect gave up ({_said(done)})")
        return Turn(trial=self._tree.head)


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1][:_LONGEST_REASON] if lines else ""


def run_logged(command: Sequence[str], tree: Tree, log: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a tree: stdout is given back, stderr goes to `log`."""
    with log.open("w", encoding="utf-8") as handle:
        return subprocess.run(
            list(command),
            cwd=tree.folder,
            env=tree.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=handle,
            text=True,
            errors="replace",
            check=False,
        )
