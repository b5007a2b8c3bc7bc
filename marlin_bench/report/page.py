"""A run as one HTML file: styles, script and data inside it, nothing fetched, everything from records escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marlin_bench import __version__
from marlin_bench.ceiling_table import format_ceiling
from marlin_bench.grade import Grade, validities
from marlin_bench.record import Environment
from marlin_bench.report.contents import model_headlines, page_data
from marlin_bench.roofline import Roofs
from marlin_bench.speedup import Row
from marlin_bench.store import Run
from marlin_bench.units import format_bandwidth, format_bytes, format_clock, format_duration, format_ratio, format_time

_FOLDER = Path(__file__).parent
GRADE_MEANINGS = {
    Grade.A: "right before and after, converged, steady clock, never throttled, operands past 5x L2, clean commit",
    Grade.B: "as A, but the clock moved by 1 % or more, was not known, or the device throttled",
    Grade.C: "not converged, or the cold timer disagrees by more than 3 %",
    Grade.D: "still a right answer, but something else is not proved",
}


def script_json(data: Any) -> str:
    """JSON that may stand inside a <script>: no `<`, `>` or `&` can end it or open another."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    for character, escaped in escapes.items():
        text = text.replace(character, escaped)
    return text


def environment_facts(environment: Environment) -> list[tuple[str, str]]:
    """What is known of machine and code, in the order a reader asks."""
    known: list[tuple[str, object]] = [
        ("device", environment.device_name),
        ("compute capability", environment.capability),
        ("SMs", environment.sm_count),
        ("highest SM clock", _or_none(environment.max_sm_clock_hz, format_clock)),
        ("memory", _or_none(environment.memory_bytes, format_bytes)),
        ("memory bandwidth by the driver", _or_none(environment.memory_bandwidth, format_bandwidth)),
        ("L2", _or_none(environment.l2_bytes, format_bytes)),
        ("ECC", environment.ecc),
        ("MIG", environment.mig),
        ("persistence", environment.persistence),
        ("power limit", None if environment.power_limit_w is None else f"{environment.power_limit_w:.0f} W"),
        ("driver", environment.driver),
        ("CUDA", environment.cuda),
        ("processor", f"{environment.cpu}, {environment.cpu_threads} threads"),
        ("Python", environment.python),
        ("commit", environment.commit + (" with changes" if environment.dirty else "")),
        ("code digest", environment.code_digest),
        *environment.packages.items(),
        *environment.settings.items(),
    ]
    return [(name, str(value)) for name, value in known if value is not None]


def _or_none(value: float | None, show: Any) -> str | None:
    return None if value is None else str(show(value))


def render(run: Run, roofs: Roofs | None, rows: Sequence[Row]) -> str:
    """The page of `run`."""
    from jinja2 import Environment as Templates
    from jinja2 import FileSystemLoader, StrictUndefined

    templates = Templates(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"ratio": format_ratio, "seconds": format_time, "duration": format_duration}
    judged = validities(run.records, run.meta.environment).values()
    counts = {grade: sum(found.grade is grade for found in judged) for grade in Grade}
    return templates.get_template("page.html").render(
        meta=run.meta,
        measured=len({record.cell.partition("+")[0] for record in run.records}),
        version=__version__,
        data=script_json(page_data(run, roofs, rows)),
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        headlines=model_headlines(run.meta, rows),
        facts=environment_facts(run.meta.environment),
        ceilings=[(c.name, format_ceiling(c), format_clock(c.sm_clock_hz), c.detail) for c in run.meta.ceilings],
        grades=[(grade.value, counts[grade], meaning) for grade, meaning in GRADE_MEANINGS.items()],
        roof_source=None if roofs is None else roofs.source,
    )
