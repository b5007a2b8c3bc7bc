"""YAML text → plain data in which every value knows its line; the refusals that protect from hostile files.

A suite is data: no anchors, aliases or tags (that is what YAML bombs are made of), one document, no duplicate keys,
at most 256 KiB, 5000 values and 16 levels. Every complaint is a `SuiteError`: one sentence with file, line and key.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, MappingStartEvent, NodeEvent, SequenceStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

SIZE_LIMIT_BYTES = 256 * 1024
DEPTH_LIMIT = 16
VALUE_LIMIT = 5000
LONGEST_SENTENCE = 400
LONGEST_KEY = 100

KeyPath = tuple[str | int, ...]
"""Where a value is: ("layers", 0, "K") is written layers[0].K."""

_TAG = "tag:yaml.org,2002:"


class SuiteError(ValueError):
    """What is wrong with a suite, as `file:line:key: sentence`; line and key are left out where there is none.

    A hostile file can put anything into keys and values, so both are shortened and unprintable characters escaped.
    """

    def __init__(self, source: str, sentence: str, *, line: int | None = None, key: str | None = None) -> None:
        self.source = source
        self.sentence = _presentable(sentence, LONGEST_SENTENCE)
        self.line = line
        self.key = None if key is None else _presentable(key, LONGEST_KEY)
        place = ":".join(str(part) for part in (source, line, self.key) if part is not None)
        super().__init__(f"{place}: {self.sentence}")


def _presentable(text: str, longest: int) -> str:
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def written(path: KeyPath) -> str:
    """A key path as people write it: layers[0].K."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True)
class Document:
    """A parsed YAML mapping: its plain `data` (JSON types only) and the nodes that know the lines."""

    source: str
    text: str
    data: dict[str, Any]
    root: MappingNode

    def locate(self, path: Sequence[str | int]) -> tuple[KeyPath, int]:
        """The part of `path` that exists in the file, and its line (from 1).

        Parts that are not in the file (names of alternatives that the validator puts into its paths) are left out.
        """
        node: Node = self.root
        line: int = node.start_mark.line
        found: list[str | int] = []
        for part in path:
            child = _child(node, part)
            if child is not None:
                line, node = child
                found.append(part)
        return tuple(found), line + 1

    def error(self, path: Sequence[str | int], sentence: str) -> SuiteError:
        """The SuiteError that says `sentence` about the value at `path`."""
        found, line = self.locate(path)
        return SuiteError(self.source, sentence, line=line, key=written(found) or None)


def _child(node: Node, part: str | int) -> tuple[int, Node] | None:
    """Line (from 0) and node of one element of a mapping or list; None where there is no such element."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line, value
    elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        return value.start_mark.line, value
    return None


def read_text(path: Path) -> str:
    """The text of a suite file; SuiteError when it is no regular file, too large, unreadable or not UTF-8."""
    source = str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise SuiteError(source, f"this is {kind}: give a suite file (YAML)")
        if status.st_size > SIZE_LIMIT_BYTES:
            raise SuiteError(source, _too_large(status.st_size))
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SuiteError(source, f"byte {error.start} is not UTF-8: save the suite as UTF-8 text") from error
    except OSError as error:
        raise SuiteError(source, f"cannot be read: {error.strerror}") from error


def _too_large(size: int) -> str:
    return f"the file has {size} bytes, but a suite has at most {SIZE_LIMIT_BYTES}: split it into several suites"


def parse_document(text: str, source: str) -> Document:
    """The one mapping that `text` holds; SuiteError for anything else."""
    size = len(text.encode("utf-8", errors="surrogatepass"))
    if size > SIZE_LIMIT_BYTES:
        raise SuiteError(source, _too_large(size))
    try:
        _refuse_hostile_events(text, source)
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise SuiteError(source, f"not valid YAML: {problem}", line=mark.line + 1 if mark else None) from error
    except YAMLError as error:
        problem = " ".join(str(error).split())
        raise SuiteError(source, f"not valid YAML: {problem}") from error
    if not isinstance(root, MappingNode):
        held = "is empty" if root is None else f"holds {kind_of(_plain(root, source, ()))}"
        raise SuiteError(source, f"the file {held}: a suite is a mapping of keys such as `layers:`", line=1)
    data = _plain(root, source, ())
    assert isinstance(data, dict)  # a MappingNode becomes a dict
    return Document(source, text, data, root)


def _refuse_hostile_events(text: str, source: str) -> None:
    """Anchors, aliases, tags, deep nesting and floods of values, found before any tree is built."""
    depth = values = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line = event.start_mark.line + 1
        values += isinstance(event, NodeEvent)
        if values > VALUE_LIMIT:
            raise SuiteError(source, f"more than {VALUE_LIMIT} values: split the suite into several", line=line)
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
            sentence = f"the anchor or alias '{event.anchor}' is not allowed in a suite: write the value out"
            raise SuiteError(source, sentence, line=line)
        if tag := getattr(event, "tag", None):
            raise SuiteError(source, f"the tag '{tag}' is not allowed in a suite: leave it out", line=line)
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            depth += 1
            if depth > DEPTH_LIMIT:
                raise SuiteError(source, f"nested deeper than {DEPTH_LIMIT} levels: no suite needs that", line=line)
        elif type(event).__name__ in {"MappingEndEvent", "SequenceEndEvent"}:
            depth -= 1


def _plain(node: Node, source: str, path: KeyPath) -> Any:
    """JSON types for a node; YAML's dates and other exotic scalars stay text."""
    if isinstance(node, SequenceNode):
        return [_plain(item, source, (*path, index)) for index, item in enumerate(node.value)]
    if isinstance(node, MappingNode):
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                raise SuiteError(source, "a list or mapping stands where a key belongs", line=line)
            if key.value in mapping:
                where = written((*path, key.value))
                raise SuiteError(source, "this key stands here twice: remove one", line=line, key=where)
            mapping[key.value] = _plain(value, source, (*path, key.value))
        return mapping
    assert isinstance(node, ScalarNode)  # YAML has no fourth kind of node
    try:
        return _scalar(node)
    except ValueError as error:
        line = node.start_mark.line + 1
        raise SuiteError(source, "is a number too long to read", line=line, key=written(path) or None) from error


def _scalar(node: ScalarNode) -> str | int | float | bool | None:
    text: str = node.value
    number = text.replace("_", "").lower()
    kind = str(node.tag).removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(number, 0) if number.lstrip("+-").startswith(("0x", "0o", "0b")) else int(number)
    if kind == "float":
        return float(number.replace(".nan", "nan").replace(".inf", "inf"))
    return text


def kind_of(value: object) -> str:
    """A value in words, for sentences: `the text 'abc'`, `a list`."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            shown = value if len(value) <= 40 else value[:37] + "…"
            return f"the text '{shown}'"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "a mapping"
