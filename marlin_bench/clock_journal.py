"""Who holds a clock lock: one journal file a GPU, written before anything is set and removed after the reset.

The guardian keeps the file locked (flock) while it lives, so a journal that nobody locks was left by a guardian that
could not do its work: killed, or cut off with the power. It says what may still be set.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

_SUFFIX = ".json"


@dataclass(frozen=True)
class Journal:
    """A lock: by which process, for which run, since when, and which clocks it set (or was about to)."""

    device_uuid: str
    run: str
    pid: int
    guardian_pid: int
    host: str
    boot_id: str
    since: str
    sm: bool
    memory: bool

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.run})"


@dataclass(frozen=True)
class Holder:
    """A journal that was found; `alive` while its guardian is."""

    journal: Journal
    alive: bool

    @property
    def rebooted(self) -> bool:
        """Whether the machine started anew since, which let all locks go."""
        return not self.alive and self.journal.boot_id != boot_id()


class HeldError(RuntimeError):
    """Another guardian holds this GPU, or left a journal behind."""


def boot_id() -> str:
    """Changes with every start of the machine; empty where the system has none."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def journal_folder() -> Path:
    """Where journals lie: XDG_STATE_HOME or ~/.local/state, under marlin-bench/clocks."""
    root = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(root) / "marlin-bench" / "clocks"


def new_journal(device_uuid: str, run: str, pid: int, *, sm: bool, memory: bool) -> Journal:
    """A journal of this process as guardian of `pid`."""
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Journal(device_uuid, run, pid, os.getpid(), os.uname().nodename, boot_id(), since, sm, memory)


def _parse(text: str) -> Journal | None:
    """None for a file without content: its guardian had not set anything yet."""
    return Journal(**json.loads(text)) if text.strip() else None


@dataclass(frozen=True)
class HeldFile:
    """The locked journal file of one GPU."""

    path: Path
    descriptor: int
    left: Journal | None
    """What an earlier guardian left in it."""

    def write(self, journal: Journal) -> None:
        """Replace the content and see it on disk."""
        data = json.dumps(asdict(journal)).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, data, 0)
        os.fsync(self.descriptor)

    def remove(self) -> None:
        """Nothing is set any more."""
        self.path.unlink(missing_ok=True)


@contextmanager
def hold_file(device_uuid: str) -> Iterator[HeldFile]:
    """Lock the journal file of a GPU, created empty where missing; HeldError when a guardian has it.

    The file stays unless `remove` is called, so that whatever ends this process leaves the journal to be found.
    """
    folder = journal_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (device_uuid + _SUFFIX)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HeldError(f"the clocks of {device_uuid} are held by another run") from error
            if not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:
                continue  # removed by the guardian that held it until now
            text = os.pread(descriptor, 1 << 16, 0).decode()
            yield HeldFile(path, descriptor, _parse(text))
            return
        finally:
            os.close(descriptor)


def find_holder(device_uuid: str) -> Holder | None:
    """Who holds the clocks of a GPU, or held them and never let go; None when nobody."""
    path = journal_folder() / (device_uuid + _SUFFIX)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        journal = _parse(os.pread(descriptor, 1 << 16, 0).decode())
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            alive = True
        else:
            alive = False
    finally:
        os.close(descriptor)
    return None if journal is None else Holder(journal, alive)


def journalled_uuids() -> list[str]:
    """GPUs that have a journal."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in journal_folder().glob(f"*{_SUFFIX}"))
