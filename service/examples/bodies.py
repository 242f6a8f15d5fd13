"""Ingest bodies: from bytes to rows, holding one row of NDJSON at a time.

Lines are counted from 1 as they stand in the body, blank ones included; rows of `{"examples": […]}` are
counted from 1 as well.
"""

import json
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from pydantic_core import from_json

from service.errors import Unprocessable
from service.examples.content import encode_json
from service.examples.rows import Row, RowError, RowRules, parse_line, parse_object, too_long

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SKIPPED_AT_ONCE = 64 * 1024
NDJSON, JSON = "application/x-ndjson", "application/json"


def rows_of(body: BinaryIO, *, media_type: str, rules: RowRules) -> Iterator[Row | RowError]:
    """Yields what each row of the body holds, in order. Raises `Unprocessable` for JSON that is no list of rows."""
    return ndjson_rows(body, rules=rules) if media_type == NDJSON else json_rows(body.read(), rules=rules)


def ndjson_rows(body: BinaryIO, *, rules: RowRules) -> Iterator[Row | RowError]:
    """Yields a row or an error for every line that is not blank.

    No line is read further than the size limit: the rest of a longer one is skipped in small pieces.
    """
    longest = rules.max_row_bytes + 2  # room for the line's end, \r\n
    line = 0
    while raw := body.readline(longest):
        line += 1
        if line == 1 and raw.startswith(BYTE_ORDER_MARK):
            raw = raw.removeprefix(BYTE_ORDER_MARK)
            if not raw.endswith(b"\n"):  # the mark took room from the line, or this is where the body ends
                raw += body.readline(len(BYTE_ORDER_MARK))
        if not raw.endswith(b"\n") and len(raw) == longest:
            _skip_to_next_line(body)
            yield too_long(line, rules)
        elif len(raw.rstrip(b"\r\n")) > rules.max_row_bytes:
            yield too_long(line, rules)
        elif not raw.isspace() and raw:
            yield parse_line(raw, line=line, rules=rules)


def json_rows(body: bytes, *, rules: RowRules) -> Iterator[Row | RowError]:
    """Yields a row or an error for every element of `{"examples": […]}`."""
    examples = _examples(_parsed(body.removeprefix(BYTE_ORDER_MARK)))
    measure = len(body) > rules.max_row_bytes  # else no row can be over the limit
    for line, value in enumerate(examples, start=1):
        if measure and _size(value) > rules.max_row_bytes:
            yield too_long(line, rules)
        else:
            yield parse_object(value, line=line, rules=rules)


def _skip_to_next_line(body: BinaryIO) -> None:
    while piece := body.readline(SKIPPED_AT_ONCE):
        if piece.endswith(b"\n"):
            return


def _size(value: object) -> int:
    try:
        return len(encode_json(value).encode(errors="surrogatepass"))
    except (ValueError, RecursionError):  # what no JSON writer takes; the row's own check says so
        return 0


def _parsed(body: bytes) -> object:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        first = error
    try:
        # Surrogates are valid JSON that cannot be stored; the row that holds one is named later.
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Unprocessable(f"The body is not JSON: {first}.", code="invalid_json", param="body") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _examples(body: object) -> list[object]:
    if isinstance(body, dict) and body.keys() == {"examples"} and isinstance(body["examples"], list):
        return body["examples"]
    raise Unprocessable(
        'The body must be {"examples": [ … ]} with nothing beside; or send one JSON object per line as application/x-ndjson.',
        code="invalid_body", param="examples",
    )  # fmt: skip
