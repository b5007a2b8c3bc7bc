"""What backends of other packages share: found at run time, silent when absent, versioned in every record."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import ClassVar

from marlin_bench.backends import carried
from marlin_bench.backends.protocol import Backend, EightBitBackend, Missing


@dataclass(frozen=True)
class Package:
    """A package that a backend needs: how it is installed, how it is imported, and which versions of it fit.

    `below`: the first release that does not, for libraries that are called by operators of no promised form. `carried`
    is a file of the MARLIN_BENCH_PEERS folder that does in place of the package.
    """

    distribution: str
    module: str
    at_least: str = "0"
    below: str | None = None
    carried: str | None = None

    @property
    def installed_version(self) -> str | None:
        """The version of the installed distribution; None without one."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    @property
    def is_installed(self) -> bool:
        """Whether it can be imported; nothing is imported to find out."""
        try:
            return find_spec(self.module) is not None
        except (ImportError, ValueError):  # a parent package that is absent or broken
            return False

    @property
    def is_carried(self) -> bool:
        """Whether the folder holds what does in its place."""
        return self.carried is not None and carried.path(self.carried) is not None

    def complaint(self) -> str | None:
        """Why it cannot be used here, in a few words; None when it can."""
        if self.is_installed:
            found = self.installed_version
            if found is not None and _numbers(found) < _numbers(self.at_least):
                return f"{self.distribution} {found} is older than {self.at_least}"
            if found is not None and self.below is not None and _numbers(found) >= _numbers(self.below):
                return (
                    f"{self.distribution} {found} is newer than what its operators are called for, below {self.below}"
                )
            return None
        if self.is_carried:
            return None
        return f"{self.distribution} is not installed"

    def label(self) -> str:
        """What records call it."""
        if not self.is_installed and self.carried is not None and self.is_carried:
            return f"{self.distribution} carried {carried.digest(self.carried)}"
        return f"{self.distribution} {self.installed_version or 'of unknown version'}"


def _numbers(version_text: str) -> tuple[int, ...]:
    """The release numbers at the start of a version, for comparing: 0.6.0.post2 → (0, 6, 0)."""
    match = re.match(r"\d+(\.\d+)*", version_text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


class Peer(Backend):
    """A kernel of another package."""

    extra: ClassVar[str] = ""
    """The extra of this project that installs it; empty where none can, and `remedy` says how it is had."""
    packages: ClassVar[tuple[Package, ...]]

    def missing(self) -> Missing | None:
        """The first package that is neither installed nor carried."""
        for package in self.packages:
            reason = package.complaint()
            if reason is not None:
                wrong_folder = carried.complaint() if package.carried else None
                return Missing(f"{reason}, {wrong_folder}" if wrong_folder else reason, self.remedy())
        return None

    @staticmethod
    def is_installed(package: Package) -> bool:
        """Whether a package itself is there; otherwise its carried file does the work."""
        return package.is_installed

    def remedy(self) -> str:
        """Installing its extra."""
        return f"pip install 'marlin-bench[{self.extra}]'"

    def version(self) -> str:
        """Every package with its version."""
        return ", ".join(package.label() for package in self.packages)


class EightBitPeer(Peer, EightBitBackend):
    """A kernel of another package that multiplies 8-bit activations."""
