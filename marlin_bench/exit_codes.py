"""What a command tells the shell (DESIGN section 5), and which code wins when several apply."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    GATE_FAILED = 1
    USAGE = 2
    WRONG_RESULT = 3
    INCONCLUSIVE = 4
    NOTHING_MEASURED = 5
    ENVIRONMENT = 6
    PARTLY_FAILED = 7
    INTERRUPTED = 130


_PRECEDENCE = (
    ExitCode.INTERRUPTED,
    ExitCode.USAGE,
    ExitCode.ENVIRONMENT,
    ExitCode.WRONG_RESULT,
    ExitCode.GATE_FAILED,
    ExitCode.NOTHING_MEASURED,
    ExitCode.PARTLY_FAILED,
    ExitCode.INCONCLUSIVE,
    ExitCode.DONE,
)


def deciding(codes: Iterable[ExitCode]) -> ExitCode:
    """The one code to end with when all of `codes` apply; DONE when there are none."""
    return min(codes, key=_PRECEDENCE.index, default=ExitCode.DONE)
