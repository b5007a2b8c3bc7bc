"""Ctrl-C and SIGTERM during a sweep: the first ends it in good order, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Ctrl-C or SIGTERM: once ends the cell in progress after its present block, twice ends it at once."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.on_first: Callable[[], None] = lambda: None

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked.is_set():
            raise KeyboardInterrupt
        self.asked.set()
        self.on_first()

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals while the context is open (the main thread's business alone)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
