"""Rows of an ingest body, checked one by one: every line becomes a `Row` or a `RowError`, whatever its bytes.

Pure: no database, no settings, no files. What can only be said of rows together (ids used twice, splits that
contradict each other, too many labels) is decided where they are loaded.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

from pydantic_core import from_json

from service.examples.content import (
    Content,
    RowProblem,
    causal_content,
    classification_content,
    encode_json,
    split_of,
)

TaskType = Literal["text-classification", "causal-lm"]
MAX_ID_LENGTH = 128
MAX_SUBJECT_LENGTH = 256
MAX_METADATA_DEPTH = 150  # the fast parser's own limit is 200, of the whole body
SHARED_FIELDS = frozenset({"id", "split", "subject", "weight", "metadata"})
FIELDS: dict[TaskType, frozenset[str]] = {
    "text-classification": SHARED_FIELDS | {"text", "label"},
    "causal-lm": SHARED_FIELDS | {"prompt", "completion", "messages", "text", "label"},
}


@dataclass(frozen=True, slots=True)
class RowRules:
    """What rows of one model must keep to."""

    task_type: TaskType
    max_row_bytes: int
    max_label_length: int


class Row(NamedTuple):
    """A row that can be stored. `asked_split` is the caller's, `hashed_split` the one its text would get."""

    line: int
    external_id: str | None
    asked_split: str | None
    hashed_split: str
    content: str
    label: str | None
    content_hash: bytes
    text_hash: bytes
    weight: float
    subject: str | None
    metadata: str | None


class RowError(NamedTuple):
    """Why the row on a line cannot be stored, with a stable code."""

    line: int
    code: str
    detail: str


def parse_line(raw: bytes, *, line: int, rules: RowRules) -> Row | RowError:
    """Returns the row that one line of NDJSON holds, or what is wrong with it. Never raises."""
    try:
        try:
            value, doubtful = from_json(raw, allow_inf_nan=False), b"\\u0000" in raw
        except ValueError as error:
            value, doubtful = _second_opinion(raw, error), True
        return _row(value, line=line, rules=rules, doubtful=doubtful)
    except RowProblem as problem:
        return RowError(line, problem.code, problem.detail)


def parse_object(value: object, *, line: int, rules: RowRules) -> Row | RowError:
    """Returns the row that one parsed JSON value holds, or what is wrong with it. Never raises."""
    try:
        return _row(value, line=line, rules=rules, doubtful=True)
    except RowProblem as problem:
        return RowError(line, problem.code, problem.detail)


def too_long(line: int, rules: RowRules) -> RowError:
    """The error of a row over the size limit."""
    return RowError(
        line, "row_too_long", f"the row is over the limit of {rules.max_row_bytes} bytes; shorten its text"
    )


def _row(value: object, *, line: int, rules: RowRules, doubtful: bool) -> Row:
    if not isinstance(value, dict):
        raise RowProblem("not_an_object", 'a row must be a JSON object such as {"text": "…", "label": "…"}')
    if doubtful:
        _check_characters(value)
    if not value.keys() <= FIELDS[rules.task_type]:
        _unknown_field(value, rules)
    content = _content(value, rules)
    return Row(
        line,
        _external_id(value.get("id")),
        _split(value.get("split")),
        split_of(content.text_hash),
        content.json,
        content.label,
        content.content_hash,
        content.text_hash,
        _weight(value.get("weight")),
        _subject(value.get("subject")),
        _metadata(value.get("metadata")),
    )


def _content(row: Mapping[str, Any], rules: RowRules) -> Content:
    if rules.task_type == "text-classification":
        return classification_content(row, max_label_length=rules.max_label_length)
    return causal_content(row)


def _unknown_field(row: Mapping[str, Any], rules: RowRules) -> NoReturn:
    fields = FIELDS[rules.task_type]
    unknown = sorted(row.keys() - fields)[0][:100]
    known = ", ".join(sorted(fields - {"label"} if rules.task_type == "causal-lm" else fields))
    raise RowProblem(
        "unknown_field", f"unknown key {unknown!r}; keys are {known}; put your own under `metadata`"
    )


def _external_id(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RowProblem("wrong_type", "`id` must be a string or an integer")
    if not 1 <= len(value) <= MAX_ID_LENGTH:
        raise RowProblem("invalid_id", f"`id` must have 1 to {MAX_ID_LENGTH} characters")
    if value.startswith("ex_"):
        raise RowProblem("reserved_id", "ids that start with 'ex_' are the service's own; use another prefix")
    return value


def _split(value: object) -> str | None:
    if value is None or value in ("train", "eval"):
        return value
    raise RowProblem("invalid_split", "`split` must be 'train' or 'eval', or be left out")


def _weight(value: object) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowProblem("wrong_type", "`weight` must be a number")
    try:
        weight = float(value)
    except OverflowError:
        weight = math.inf
    if not (math.isfinite(weight) and weight > 0):
        raise RowProblem("invalid_weight", "`weight` must be positive and finite")
    return weight


def _subject(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise RowProblem("wrong_type", "`subject` must be a string")
    if not 1 <= len(value) <= MAX_SUBJECT_LENGTH:
        raise RowProblem("invalid_subject", f"`subject` must have 1 to {MAX_SUBJECT_LENGTH} characters")
    return value


def _metadata(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RowProblem("wrong_type", "`metadata` must be an object")
    if _deeper_than(MAX_METADATA_DEPTH, value):
        raise RowProblem(
            "nested_too_deep", f"`metadata` may be nested {MAX_METADATA_DEPTH} levels deep at most"
        )
    try:
        return encode_json(value)
    except ValueError:
        raise RowProblem(
            "number_out_of_range", "`metadata` holds a number that JSON readers overflow on"
        ) from None


def _deeper_than(levels: int, value: object) -> bool:
    inner = [value]
    while inner and levels > 0:
        inner = [part for item in inner for part in _parts(item) if isinstance(part, dict | list)]
        levels -= 1
    return bool(inner)


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _second_opinion(raw: bytes, error: ValueError) -> object:
    """Parses what the fast parser refused, to tell a surrogate (valid JSON, not storable) from broken JSON."""
    if b"\0" in raw:
        raise RowProblem("nul_character", "the line holds a NUL character; remove it")
    try:
        text = raw.decode()
    except UnicodeDecodeError as broken:
        raise RowProblem("invalid_utf8", f"byte {broken.start + 1} of the line is not UTF-8") from None
    if "recursion limit" in str(error):
        raise RowProblem("nested_too_deep", "the row is nested too deep; flatten it")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RowProblem("invalid_json", str(error).replace(" at line 1 column", " at column")) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_characters(value: object) -> None:
    for text in _strings(value):
        if "\0" in text:
            raise RowProblem("nul_character", "the row holds a NUL character (\\u0000); remove it")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise RowProblem(
                    "invalid_unicode",
                    "the row holds half of a surrogate pair (\\ud800 to \\udfff); send the whole character",
                ) from None


def _strings(value: object) -> Iterator[str]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
