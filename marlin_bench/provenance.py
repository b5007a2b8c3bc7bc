"""Which code is this: commit, dirtiness, and a digest of everything that can move a number."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

UNKNOWN_COMMIT = "unknown"
COMMIT_VARIABLE = "MARLIN_BENCH_COMMIT"
_DIGESTED_SUFFIXES = {".py", ".cu", ".cuh", ".yaml", ".json"}


@dataclass(frozen=True)
class Revision:
    """Commit (short hash or `unknown`) and whether the tree had changes; None when nobody can tell."""

    commit: str
    dirty: bool | None

    @property
    def tag(self) -> str:
        """As it stands in the name of a run folder."""
        return self.commit + ("_dirty" if self.dirty else "")


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def revision() -> Revision:
    """Commit and dirtiness of this checkout, else of MARLIN_BENCH_COMMIT, else unknown.

    An installed wheel that happens to lie inside some other repository is not that repository's code.
    """
    given = os.environ.get(COMMIT_VARIABLE)
    if given:
        return Revision(given.removesuffix("_dirty")[:12], given.endswith("_dirty"))
    package = Path(__file__).parent
    if _git("ls-files", "--error-unmatch", str(package / "__init__.py")) is None:
        return Revision(UNKNOWN_COMMIT, None)
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return Revision(UNKNOWN_COMMIT, None)
    return Revision(commit, bool(_git("status", "--porcelain", "--", "marlin_bench", "kernels", "suites")))


@cache
def code_digest() -> str:
    """Digest (16 hex digits) of marlin_bench/ and kernels/, wherever they are installed."""
    from marlin_bench.cuda_source import kernels_folder

    package = Path(__file__).parent
    hasher = hashlib.sha256()
    for root in (package, kernels_folder()):
        for path in sorted(root.rglob("*")):
            inside_data = root == package and path.relative_to(package).parts[0] in {"kernels", "suites", "results"}
            if path.suffix in _DIGESTED_SUFFIXES and not inside_data:
                hasher.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()[:16]
