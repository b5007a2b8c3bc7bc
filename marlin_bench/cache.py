"""Where things that cost time to make again are kept: `$XDG_CACHE_HOME/marlin-bench`, `~/.cache/marlin-bench`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder `name` of the cache; it may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "marlin-bench" / name
