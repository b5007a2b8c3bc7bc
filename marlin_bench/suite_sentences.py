"""What the validator found wrong with a suite → one sentence a person can act on."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from marlin_bench.suite_text import Document, SuiteError, kind_of, written
from marlin_bench.suite_values import UNKNOWN_KEY

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
}

_LIMITED = {
    "literal_error": "is {value}: use {expected}",
    "union_tag_invalid": "is '{tag}': use {expected_tags}",
    "union_tag_not_found": "needs the key {discriminator}",
    "greater_than_equal": "is {value}: it must be at least {ge}",
    "greater_than": "is {value}: it must be above {gt}",
    "less_than_equal": "is {value}: it must be at most {le}",
    "less_than": "is {value}: it must be below {lt}",
    "too_short": "is {value}: give at least {min_length}",
    "too_long": "is a list of {actual_length}: give at most {max_length}",
    "string_too_short": "is an empty text: write something",
    "string_too_long": "is longer than {max_length} characters: shorten it",
    "string_pattern_mismatch": "is {value}: use letters, digits, dots, dashes and underscores",
}


def first_complaint(error: ValidationError, document: Document) -> SuiteError:
    """The first error by its place in the file, as a SuiteError.

    A list whose elements are all wrong is also called empty by the validator: only the elements are worth a word.
    """
    everything = error.errors(include_url=False)
    causes = {detail["loc"][:depth] for detail in everything for depth in range(len(detail["loc"]))}
    details = [detail for detail in everything if detail["loc"] not in causes]
    first = min(details, key=lambda detail: document.locate(_place(detail))[1])
    place = _place(first)
    if first["type"] == "missing":
        found, line = document.locate(place[:-1])
        key = written((*found, place[-1]))
        return SuiteError(document.source, "this key is missing", line=line, key=key)
    return document.error(place, _sentence(first))


def _place(detail: ErrorDetails) -> tuple[str | int, ...]:
    if detail["type"] == UNKNOWN_KEY:
        return (*detail["loc"], detail["ctx"]["key"])
    return detail["loc"]


def _sentence(detail: ErrorDetails) -> str:
    kind, value = detail["type"], kind_of(detail["input"])
    if kind in _WANTED:
        return f"is {value} where {_WANTED[kind]} belongs"
    if kind in _LIMITED:
        return _LIMITED[kind].format(value=value, **detail.get("ctx", {}))
    return detail["msg"]
