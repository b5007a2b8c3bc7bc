"""Run folders: results/<device>/<UTC>_<suite>_<commit>[_dirty]/{run.json,records.jsonl}.

records.jsonl only ever grows, a line a record, flushed before the next cell starts. A truncated last line (power cut)
costs that line alone. run_writer.py writes them.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from marlin_bench.provenance import UNKNOWN_COMMIT
from marlin_bench.record import Record, RunMeta
from marlin_bench.record_lines import LineError, SchemaError, line_of, record_of, upgrade

META_FILE = "run.json"
RECORDS_FILE = "records.jsonl"
PACKED_RECORDS_FILE = "records.jsonl.gz"
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


def read_meta(folder: Path) -> RunMeta:
    """run.json of a run folder; StoreError when there is none or it cannot be read."""
    path = folder / META_FILE
    try:
        return RunMeta.model_validate(upgrade(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        raise StoreError(f"{folder} is not a run folder: it has no {META_FILE}") from error
    except SchemaError as error:
        raise StoreError(str(error)) from error
    except ValueError as error:
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
        latest = {record.id: record for record in _records(folder, with_telemetry=with_telemetry)}
    return Run(folder, meta, list(latest.values()))


def _lines(folder: Path) -> tuple[Path, Iterable[bytes]]:
    """The file that holds the records of `folder`, and its lines; none where nothing was measured yet."""
    plain, packed = folder / RECORDS_FILE, folder / PACKED_RECORDS_FILE
    if plain.exists():
        return plain, BytesIO(plain.read_bytes())
    if not packed.exists():
        return plain, []
    try:
        return packed, BytesIO(gzip.decompress(packed.read_bytes()))
    except (OSError, EOFError, zlib.error) as error:
        raise StoreError(f"{packed} cannot be unpacked ({error}): restore it") from error


def _records(folder: Path, *, with_telemetry: bool) -> Iterator[Record]:
    path, lines = _lines(folder)
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            yield record_of(line, with_telemetry=with_telemetry)
        except SchemaError as error:
            raise StoreError(str(error)) from error
        except LineError as error:
            if not line.endswith(b"\n"):  # a power cut: a whole line ends in a newline
                return
            if error.lacks_a_value:
                raise MissingValueError(
                    f"{path}:{number} lacks a value ({error}): measure that cell again or restore the file"
                ) from error
            raise StoreError(
                f"{path}:{number} is not a record ({error}): remove that line or restore the file"
            ) from error


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
    lines = "".join(line_of(record) for record in run.records)
    (target / PACKED_RECORDS_FILE).write_bytes(gzip.compress(lines.encode(), mtime=0))
    return target


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
