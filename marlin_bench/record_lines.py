"""One line of records.jsonl and the record that it holds."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError

from marlin_bench.record import SCHEMA_VERSION, Record

_LACKING = frozenset({"missing", "too_short", "finite_number"})
_TODAY = b'{"schema_version":%d,' % SCHEMA_VERSION
_TELEMETRY = re.compile(rb',"telemetry":\{[^{}]*(?:\{[^{}]*\}[^{}]*)?\}')
"""A block's telemetry as it stands in a line. Inside a text its quotes would be escaped: nothing else looks like it."""


class LineError(ValueError):
    """A line that is no record: what is wrong with it in a few words.

    `lacks_a_value`: all that is wrong are values that are absent, null, NaN or infinite.
    """

    def __init__(self, reason: str, *, lacks_a_value: bool = False) -> None:
        super().__init__(reason)
        self.lacks_a_value = lacks_a_value


class SchemaError(ValueError):
    """Data of a schema that this program does not read; one sentence."""


def upgrade(data: Any) -> dict[str, Any]:
    """A record or run.json of an older schema in today's form; SchemaError when it is newer than this program."""
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    version = data.get("schema_version", 0)
    if not isinstance(version, int) or version > SCHEMA_VERSION or version < 1:
        raise SchemaError(f"schema version {version} is not one this program reads (1 to {SCHEMA_VERSION}): upgrade it")
    return data


def line_of(record: Record) -> str:
    """A record as a line: the schema version first, fields at their defaults left out."""
    fields = record.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({"schema_version": record.schema_version, **fields}, separators=(",", ":")) + "\n"


def record_of(line: bytes, *, with_telemetry: bool = True) -> Record:
    """The record of a line; LineError when it holds none.

    Telemetry is most of a line: left out, the rest is read three times faster.
    """
    if not with_telemetry:
        try:
            return _parsed(_TELEMETRY.sub(b"", line))
        except ValueError:  # a brace in a text, or a line that is broken anyway: the whole line tells
            pass
    try:
        return _parsed(line)
    except ValidationError as error:
        raise LineError(_reason(error), lacks_a_value=_lacks_a_value(error)) from error
    except SchemaError:
        raise
    except ValueError as error:
        raise LineError(str(error).splitlines()[0]) from error


def _parsed(line: bytes) -> Record:
    if line.startswith(_TODAY):
        return Record.model_validate_json(line)
    return Record.model_validate(upgrade(json.loads(line)))


def _reason(error: ValidationError) -> str:
    """The field that does not fit, rather than how many do not."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def _lacks_a_value(error: ValidationError) -> bool:
    return all(
        found["type"] in _LACKING or found["input"] is None or "needs samples" in found["msg"]
        for found in error.errors(include_url=False)
    )
