"""The one writer of a run folder: records appended and seen on disk, a lock that names its holder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marlin_bench.record import Record, RunMeta
from marlin_bench.record_lines import line_of
from marlin_bench.store import META_FILE, RECORDS_FILE, StoreError

LOCK_FILE = "writer.lock"


class DiskFullError(StoreError):
    """A record could not be written; everything before it is intact."""


class RunWriter:
    """The one writer of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = folder / RECORDS_FILE

    def write_meta(self, meta: RunMeta) -> None:
        """Replace run.json as a whole."""
        self._write_whole(self.folder / META_FILE, meta.model_dump_json(indent=1) + "\n")

    def append(self, record: Record) -> None:
        """Add one record and see it on disk; DiskFullError leaves the file as it was before."""
        data = line_of(record).encode()
        with self._records.open("ab") as handle:
            start = handle.tell()
            try:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            except OSError as error:
                os.truncate(self._records, start)
                raise DiskFullError(
                    f"cannot write to {self._records} ({error.strerror}): free space and run again"
                ) from error

    def _write_whole(self, path: Path, text: str) -> None:
        draft = path.with_suffix(".tmp")
        try:
            with draft.open("w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(draft, path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise DiskFullError(f"cannot write {path} ({error.strerror}): free space and run again") from error


def _process_is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _holder(lock: Path) -> str | None:
    """Who writes the folder of `lock`, or None when nobody does any more."""
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if owner["host"] == socket.gethostname() and not _process_is_alive(owner["pid"]):
        return None
    return f"process {owner['pid']} on {owner['host']}"


def _drop_cut_line(path: Path) -> None:
    """Remove what a power cut left of a last line, so that the next record starts on a line of its own."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        with path.open("r+b") as handle:
            handle.truncate(len(whole))


@contextmanager
def open_writer(folder: Path) -> Iterator[RunWriter]:
    """Hold `folder` for writing, created when missing; StoreError names the process that already holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create {folder} ({error.strerror}): choose another with --results") from error
    lock = folder / LOCK_FILE
    identity = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    while True:
        try:
            with lock.open("x", encoding="utf-8") as handle:
                handle.write(identity)
            break
        except FileExistsError:
            holder = _holder(lock)
            if holder is not None:
                raise StoreError(
                    f"{folder} is being written by {holder}: wait for it or choose another folder"
                ) from None
            lock.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write in {folder} ({error.strerror}): choose another with --results") from error
    try:
        _drop_cut_line(folder / RECORDS_FILE)
        yield RunWriter(folder)
    finally:
        lock.unlink(missing_ok=True)
