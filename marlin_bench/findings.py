"""What a look at the machine found: a name, how it stands, what was seen and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`; `remedy` is a command or a sentence, None where nothing needs doing."""

    name: str
    state: State
    found: str
    remedy: str | None = None
