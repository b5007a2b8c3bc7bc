"""The accepted run of a device and suite, small enough to keep in git: results/baselines/<device>/<suite>/.

A baseline keeps what a comparison needs: times, clocks and statuses of up to 40 blocks a record (20 for each run where
it is of three and more), evenly spread over them. Several runs of the same code count as one with the blocks of all:
processes differ, and what one of them happened to be is no measure for the next. The same blocks are kept for every
record of a cell, so that pairs stay pairs. Telemetry, checks and the fourth digit of a microsecond stay in the run that
it was taken from, which it names.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from marlin_bench.compare import CellChange, compare
from marlin_bench.device import slug
from marlin_bench.gate import refuse_baseline
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.judgement import Judgement
from marlin_bench.record import Block, Record, RunMeta, Status
from marlin_bench.record_lines import line_of
from marlin_bench.retry import repeated
from marlin_bench.store import BASELINES_FOLDER, META_FILE, PACKED_RECORDS_FILE, Run, StoreError, read_meta, read_run

KEPT_BLOCKS = 40
KEPT_OF_EACH_RUN = 20
_DIGITS = 6


class BaselineError(RuntimeError):
    """A baseline that cannot be set or is not there; one sentence."""


@dataclass(frozen=True)
class Acceptance:
    """What `set_baseline` did: where it lies, and how it compares with the one it replaced."""

    folder: Path
    replaced: str | None
    changes: list[CellChange]


def baseline_folder(results: Path, device_name: str, suite: str) -> Path:
    """Where the accepted run of a device and suite lies."""
    return results / BASELINES_FOLDER / slug(device_name) / suite


def find_baseline(results: Path, meta: RunMeta) -> Run | None:
    """The accepted run for the device and suite of `meta`, or None."""
    folder = baseline_folder(results, meta.environment.device_name, meta.suite)
    return read_run(folder) if (folder / META_FILE).exists() else None


def list_baselines(results: Path) -> list[tuple[Path, RunMeta]]:
    """Every accepted run under `results`, by device and suite."""
    root = results / BASELINES_FOLDER
    folders = sorted(path.parent for path in root.rglob(META_FILE)) if root.is_dir() else []
    return [(folder, read_meta(folder)) for folder in folders]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _kept_indices(records: Iterable[Record], most: int) -> dict[tuple[str, str], set[int]]:
    """The block indices to keep, by cell and timer."""
    indices: dict[tuple[str, str], set[int]] = {}
    for record in records:
        indices.setdefault((record.cell, record.timer), set()).update(block.index for block in record.blocks)
    return {place: _spread(sorted(found), most) for place, found in indices.items()}


def _spread(indices: list[int], most: int) -> set[int]:
    if len(indices) <= most:
        return set(indices)
    step = len(indices) / most
    return {indices[int(position * step)] for position in range(most)}


def slimmed(records: list[Record], most: int = KEPT_BLOCKS) -> list[Record]:
    """Records with what a comparison needs, and no more: up to `most` blocks each."""
    kept = _kept_indices(records, most)
    return [
        record.model_copy(
            update={
                "blocks": [
                    Block(
                        index=block.index,
                        order=block.order,
                        times=[_rounded(sorted(block.times)[len(block.times) // 2])],
                        started_s=_rounded(block.started_s),
                        sm_clock_hz=block.sm_clock_hz,
                    )
                    for block in _blocks_to_keep(record, kept[record.cell, record.timer], most)
                ],
                "checks": [],
                "choice": {},
            }
        )
        for record in records
    ]


def _blocks_to_keep(record: Record, kept: set[int], most: int) -> list[Block]:
    """The cell's common blocks; a record that left the rotation early keeps its own when too few of those are left."""
    common = [block for block in record.blocks if block.index in kept]
    return common if len(common) * 2 >= min(len(record.blocks), most) else record.blocks[:most]


def pooled_run(runs: Sequence[Run]) -> Run:
    """Several runs of the same code as one; BaselineError where they are of two codes, suites, devices or policies."""
    first, *others = runs
    for other in others:
        for what, was, now in (
            ("suite", first.meta.suite_digest, other.meta.suite_digest),
            ("code", first.meta.environment.code_digest, other.meta.environment.code_digest),
            ("device", first.meta.environment.device_name, other.meta.environment.device_name),
            ("clock policy", first.meta.clock_policy, other.meta.clock_policy),
        ):
            if was != now:
                raise BaselineError(
                    f"{first.folder} and {other.folder} differ in their {what}: only runs of the same make one baseline"
                )
        first = repeated(first, other.records)
    return first


def set_baseline(
    run: Run, results: Path, policy: RelativeRule, *, force: bool = False, others: Sequence[Run] = ()
) -> Acceptance:
    """Accept `run`, pooled with `others` of the same code; BaselineError when a better one stands there.

    With `force` a slower, dirty or partly wrong run is accepted too.
    """
    run = pooled_run([run, *others])
    refuse_baseline(run)
    environment = run.meta.environment
    if environment.dirty is not False and not force:
        raise BaselineError(
            f"{run.folder} was measured with uncommitted changes, or its commit is not known: commit and measure "
            "again, or add --force"
        )
    previous, changes = find_baseline(results, run.meta), []
    if previous is not None:
        changes = compare(previous.records, run.records, policy)
        lost = [one for one in changes if one.judgement is Judgement.WORSE or _is_gone(one)]
        if lost and not force:
            first = lost[0]
            raise BaselineError(
                f"{len(lost)} cells are worse than in the accepted run {previous.meta.run}, first {first.cell} "
                f"{first.backend} ({first.reason}): keep it, or add --force"
            )
    folder = baseline_folder(results, environment.device_name, run.meta.suite)
    _replace(folder, run, max(KEPT_BLOCKS, KEPT_OF_EACH_RUN * (1 + len(others))))
    return Acceptance(folder, None if previous is None else previous.meta.run, changes)


def _is_gone(one: CellChange) -> bool:
    """Whether the accepted run had a right answer where the new one has none."""
    return one.old is not None and (one.new is None or one.new.status is not Status.OK)


def _replace(folder: Path, run: Run, most: int) -> None:
    """Write the new baseline beside the old one, then put it in its place."""
    draft = folder.with_name(folder.name + ".new")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        (draft / META_FILE).write_text(run.meta.model_dump_json(indent=1) + "\n", encoding="utf-8")
        text = "".join(map(line_of, slimmed(run.records, most)))
        (draft / PACKED_RECORDS_FILE).write_bytes(gzip.compress(text.encode(), mtime=0))
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except OSError as error:
        raise StoreError(f"cannot write {folder} ({error.strerror}): free space or choose --results") from error
