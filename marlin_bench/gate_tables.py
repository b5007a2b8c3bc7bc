"""A gate's verdicts for people: the table of a terminal, and Markdown for a job summary or a comment.

The gravest verdict comes first, never the first in the alphabet: a reader sees what matters before anything is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from marlin_bench.table import Column, Line, Table
from marlin_bench.verdict import GateReport, Outcome, Verdict

SUMMARY_LIMIT_BYTES = 1024 * 1024
"""GitHub refuses a step summary above this."""
COMMENT_LIMIT_BYTES = 65_536
"""GitHub refuses a comment above this many characters; bytes are never fewer."""

_COLUMNS = (
    Column("verdict"),
    Column("what"),
    Column("measured"),
    Column("required", rank=1),
    Column("why", rank=2, elastic=True),
    Column("next", rank=3, elastic=True),
)
_STYLES = {
    Outcome.FAILED: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.PASSED: "",
    Outcome.NOT_APPLICABLE: "dim",
}
_MARKS = {
    Outcome.FAILED: "❌ fail",
    Outcome.INCONCLUSIVE: "❔ inconclusive",
    Outcome.PASSED: "✅ pass",
    Outcome.NOT_APPLICABLE: "not applicable",
}


def _why(verdict: Verdict) -> str:
    return f"{verdict.kind}: {verdict.reason}" if verdict.reason else verdict.kind


def gate_table(report: GateReport, most_passes: int | None = None) -> tuple[Table, int]:
    """One line a verdict, the gravest first; of what needs nobody's attention `most_passes`, and how many are left out.

    None shows everything.
    """
    ordered = report.by_severity
    grave = report.count(Outcome.FAILED) + report.count(Outcome.INCONCLUSIVE)
    shown = ordered if most_passes is None else ordered[: grave + most_passes]
    table = Table(
        _COLUMNS,
        [
            Line(
                (
                    verdict.outcome.value,
                    verdict.subject.name,
                    verdict.measured,
                    verdict.required,
                    _why(verdict),
                    verdict.next_command,
                ),
                _STYLES[verdict.outcome],
            )
            for verdict in shown
        ],
    )
    return table, len(ordered) - len(shown)


def _escaped(text: str) -> str:
    """Text that Markdown and HTML leave alone inside a table cell: records may hold anything."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;")):
        text = text.replace(character, entity)
    for character in "\\*_[]":
        text = text.replace(character, f"\\{character}")
    text = text.replace("@", "&#64;")  # nobody is called by a record
    return " ".join(text.split())


def _lines(verdicts: Sequence[Verdict]) -> list[str]:
    return [
        "| "
        + " | ".join(
            (
                _MARKS[verdict.outcome],
                _escaped(verdict.subject.name),
                _escaped(verdict.measured),
                _escaped(verdict.required),
                _escaped(_why(verdict)),
            )
        )
        + " |\n"
        for verdict in verdicts
    ]


def _code(text: str) -> str:
    """Text between backticks, where nothing but a backtick is special."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


_HEAD = "| verdict | what | measured | required | why |\n|---|---|---|---|---|\n"


def _section(title: str, verdicts: Sequence[Verdict], room: int, *, is_folded: bool) -> str:
    """A table within `room` bytes of UTF-8; says how many lines had no room."""
    if not verdicts:
        return ""
    opening = f"\n<details><summary>{title}</summary>\n\n{_HEAD}" if is_folded else f"\n{_HEAD}"
    closing = "\n</details>\n" if is_folded else ""
    reserve = len((opening + closing).encode()) + 80
    kept: list[str] = []
    for line in _lines(verdicts):
        if reserve + len(line.encode()) > room:
            break
        reserve += len(line.encode())
        kept.append(line)
    left = len(verdicts) - len(kept)
    if not kept:
        sentence = f"\n… and {left} more: see the JSON or JUnit file.\n"
        return sentence if len(sentence.encode()) <= room else ""
    more = f"\n… and {left} more: see the JSON or JUnit file.\n" if left else ""
    return opening + "".join(kept) + more + closing


def gate_markdown(report: GateReport, limit_bytes: int = COMMENT_LIMIT_BYTES) -> str:
    """The report within `limit_bytes`: failures and inconclusive cells open, the rest folded."""
    ordered = report.by_severity
    open_ones = [one for one in ordered if one.outcome in {Outcome.FAILED, Outcome.INCONCLUSIVE}]
    folded = [one for one in ordered if one not in open_ones]
    against = f" against {_code(report.baseline)}" if report.baseline else ""
    head = (
        f"### marlin-bench: {report.ending}\n\n"
        f"**{report.summary}** · {_code(report.run)} on {_escaped(report.device)}, policy "
        f"{_escaped(report.policy)}{against}\n"
    )
    head += "".join(f"\n> {_escaped(note)}\n" for note in report.notes[:5])
    commands = list(dict.fromkeys(verdict.next_command for verdict in open_ones if verdict.next_command))[:3]
    foot = "\nNext:\n\n```bash\n" + "".join(f"{command}\n" for command in commands) + "```\n" if commands else ""
    room = limit_bytes - len((head + foot).encode())
    first = _section("", open_ones, room, is_folded=False)
    room -= len(first.encode())
    return head + first + _section(f"{len(folded)} more", folded, room, is_folded=True) + foot
