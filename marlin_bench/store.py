"""Run folders: results/<device>/<UTC>_<suite>_<commit>[_dirty]/{run.json,records.jsonl}.

records.jsonl only ever grows, a line a record, flushed before the next cell starts. A truncated last line (power cut)
costs that line alone. One writer at a time holds a folder; a second one is told who.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import re
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from marlin_bench.provenance import UNKNOWN_COMMIT
from marlin_bench.record import SCHEMA_VERSION, Record, RunMeta

META_FILE = "run.json"
RECORDS_FILE = "records.jsonl"
PACKED_RECORDS_FILE = "records.jsonl.gz"
LOCK_FILE = "writer.lock"
RESULTS_VARIABLE = "MARLIN_BENCH_RESULTS"
BASELINES_FOLDER = "baselines"
RETRIES_FOLDER = "retries"
BISECTIONS_FOLDER = "bisections"
SET_ASIDE = frozenset({BASELINES_FOLDER, RETRIES_FOLDER, BISECTIONS_FOLDER})
"""Folders of accepted baselines, of what a gate measured again, of a bisection's steps: no runs of their own."""


class StoreError(RuntimeError):
    """A run folder that cannot be read, or that somebody else writes; one sentence."""


class MissingValueError(StoreError):
    """A record lacks a value, or holds a NaN or an infinity: what judges it has nothing to judge (exit 5)."""


class DiskFullError(StoreError):
    """A record could not be written; everything before it is intact."""


@dataclass(frozen=True)
class Run:
    """One run as it lies on disk."""

    folder: Path
    meta: RunMeta
    records: list[Record]


def results_folder(option: Path | None = None) -> Path:
    """Where runs are kept: the option, else MARLIN_BENCH_RESULTS, else ./results."""
    return option or Path(os.environ.get(RESULTS_VARIABLE) or "results")


def published_folder() -> Path:
    """The runs that ship with the package: inside an installed wheel, else results/published of the checkout."""
    installed = Path(__file__).parent / "results" / "published"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "results" / "published"


def upgrade(data: dict[str, Any]) -> dict[str, Any]:
    """A record or run.json of an older schema in today's form; StoreError when it is newer than this program."""
    version = data.get("schema_version", 0)
    if not isinstance(version, int) or version > SCHEMA_VERSION or version < 1:
        raise StoreError(f"schema version {version} is not one this program reads (1 to {SCHEMA_VERSION}): upgrade it")
    return data


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Thousands of records are all kept: looking for garbage among them, now or later, takes longer than reading them.

    They hold no cycles, so that leaving them to reference counts for good loses nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


_TELEMETRY = re.compile(rb',"telemetry":\{[^{}]*(?:\{[^{}]*\}[^{}]*)?\}')
"""A block's telemetry as it stands in a line. Inside a text its quotes would be escaped: nothing else looks like it."""


_TODAY = b'{"schema_version":%d,' % SCHEMA_VERSION


def _parse_record(line: bytes) -> Record:
    if line.startswith(_TODAY):
        return Record.model_validate_json(line)
    return Record.model_validate(upgrade(json.loads(line)))


def _reason(error: ValueError) -> str:
    """What is wrong with a line, in a few words: the field that does not fit, rather than how many do not."""
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0]
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


_LACKING = frozenset({"missing", "too_short", "finite_number"})


def _lacks_a_value(error: ValueError) -> bool:
    """Whether all that is wrong with a line are values that are absent, null, NaN or infinite."""
    if not isinstance(error, ValidationError):
        return False
    return all(
        found["type"] in _LACKING or found["input"] is None or "needs samples" in found["msg"]
        for found in error.errors(include_url=False)
    )


def _parse_lines(data: bytes, path: Path) -> list[Record]:
    records: list[Record] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        is_last = number == len(lines)  # a whole line ends in a newline, so only a cut one stands last
        try:
            records.append(_parse_record(line))
        except (ValueError, ValidationError) as error:
            if is_last:
                break
            reason = _reason(error)
            if _lacks_a_value(error):
                raise MissingValueError(
                    f"{path}:{number} lacks a value ({reason}): measure that cell again or restore the file"
                ) from error
            raise StoreError(
                f"{path}:{number} is not a record ({reason}): remove that line or restore the file"
            ) from error
    return records


def read_meta(folder: Path) -> RunMeta:
    """run.json of a run folder; StoreError when there is none or it cannot be read."""
    path = folder / META_FILE
    try:
        return RunMeta.model_validate(upgrade(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        raise StoreError(f"{folder} is not a run folder: it has no {META_FILE}") from error
    except (ValueError, ValidationError) as error:
        raise StoreError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): restore it or measure again"
        ) from error


def read_run(folder: Path, *, with_telemetry: bool = True) -> Run:
    """The run in `folder` (or the folder of a named records file); for a record measured twice the last one counts.

    Telemetry is most of a run's bytes: whoever asks for times and clocks alone reads three times faster without it.
    """
    if folder.name in {RECORDS_FILE, PACKED_RECORDS_FILE}:
        folder = folder.parent
    meta = read_meta(folder)
    with _without_garbage_collection():
        latest = {record.id: record for record in _read_records(folder, with_telemetry=with_telemetry)}
    return Run(folder, meta, list(latest.values()))


def _read_records(folder: Path, *, with_telemetry: bool) -> list[Record]:
    plain, packed = folder / RECORDS_FILE, folder / PACKED_RECORDS_FILE
    if plain.exists():
        path, data = plain, plain.read_bytes()
    elif packed.exists():
        try:
            path, data = packed, gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise StoreError(f"{packed} cannot be unpacked ({error}): restore it") from error
    else:
        return []
    if not with_telemetry:
        try:
            return _parse_lines(_TELEMETRY.sub(b"", data), path)
        except StoreError:  # a brace in a text, or a line that is broken anyway: the whole lines tell
            pass
    return _parse_lines(data, path)


def publish(folder: Path, published: Path) -> Path:
    """Copy a run into `published`, its records packed (small enough for git); where it went.

    StoreError for a run of unknown or changed code: nobody could measure it again.
    """
    run = read_run(folder)
    revision = run.meta.environment
    if run.meta.origin == "measured" and (revision.dirty is not False or revision.commit == UNKNOWN_COMMIT):
        state = "has uncommitted changes" if revision.dirty else "is unknown"
        raise StoreError(
            f"{folder} is not published: the code it ran ({revision.commit}) {state}; commit and run again"
        )
    target = published / folder.resolve().parent.name / folder.resolve().name
    target.mkdir(parents=True, exist_ok=True)
    (target / META_FILE).write_bytes((folder / META_FILE).read_bytes())
    lines = "".join(_line(record) for record in run.records)
    (target / PACKED_RECORDS_FILE).write_bytes(gzip.compress(lines.encode(), mtime=0))
    return target


def _line(record: Record) -> str:
    """One line of records.jsonl: the schema version first, fields at their defaults left out."""
    fields = record.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({"schema_version": record.schema_version, **fields}, separators=(",", ":")) + "\n"


def find_runs(results: Path) -> list[Path]:
    """Every run folder under `results`, published ones too, oldest first; copies kept for a gate are none."""
    if not results.is_dir():
        return []
    paths = (path.parent for path in results.rglob(META_FILE))
    folders = {path for path in paths if SET_ASIDE.isdisjoint(path.relative_to(results).parts)}
    return sorted(folders, key=lambda folder: (folder.name, str(folder)))


def _measured_runs(results: Path) -> list[tuple[Path, RunMeta]]:
    """Readable runs that were measured, oldest first; a published quotation is none."""
    found = []
    for folder in find_runs(results):
        try:
            meta = read_meta(folder)
        except StoreError:
            continue
        if meta.origin == "measured":
            found.append((folder, meta))
    return found


def newest_run(results: Path, *, own_only: bool = False) -> Path | None:
    """The newest *measured* run under `results`, or None; `own_only` leaves out those that ship with the package."""
    shipped = published_folder().resolve()
    found = [
        folder for folder, _ in _measured_runs(results) if not (own_only and folder.resolve().is_relative_to(shipped))
    ]
    return found[-1] if found else None


def fullest_run(results: Path) -> Path | None:
    """The measured run with the most cells, the newest of those alike: what stands for a folder of published runs."""
    return max(_measured_runs(results), key=lambda run: (run[1].cells, run[0].name), default=(None, None))[0]


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
        data = _line(record).encode()
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
