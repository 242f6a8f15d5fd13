"""Bodies: lines are counted as they stand, and no line is held in memory beyond its limit."""

import io
import tracemalloc

import pytest

from service.errors import Unprocessable
from service.examples.bodies import json_rows, ndjson_rows
from service.examples.rows import Row, RowError, RowRules

RULES = RowRules(task_type="text-classification", max_row_bytes=200, max_label_length=20)
ROW = b'{"text": "a", "label": "b"}'


def outcomes(body: bytes) -> list[tuple[int, str]]:
    return [
        (item.line, "ok" if isinstance(item, Row) else item.code)
        for item in ndjson_rows(io.BytesIO(body), rules=RULES)
    ]


def test_blank_lines_count_and_are_skipped() -> None:
    assert outcomes(b"\n" + ROW + b"\r\n  \n" + ROW) == [(2, "ok"), (4, "ok")]


def test_a_byte_order_mark_before_the_first_line_is_no_error() -> None:
    assert outcomes(b"\xef\xbb\xbf" + ROW) == [(1, "ok")]


@pytest.mark.parametrize("beyond", [-1, 0, 1, 2, 3, 4, 300])
def test_a_byte_order_mark_takes_no_room_from_the_first_line(beyond: int) -> None:
    line = ROW + b" " * (RULES.max_row_bytes + beyond - len(ROW))
    taken = "ok" if beyond <= 0 else "row_too_long"
    assert outcomes(b"\xef\xbb\xbf" + line + b"\n" + ROW) == [(1, taken), (2, "ok")]


def test_a_line_of_exactly_the_limit_is_taken_and_one_more_byte_is_not() -> None:
    fitting = ROW + b" " * (RULES.max_row_bytes - len(ROW))
    assert outcomes(fitting + b"\r\n" + fitting + b" \n" + ROW) == [(1, "ok"), (2, "row_too_long"), (3, "ok")]


def test_the_row_after_a_ten_megabyte_line_is_read_and_memory_stays_small() -> None:
    body = io.BytesIO(b'{"text": "' + b"x" * 10_000_000 + b'"}\n' + ROW)
    tracemalloc.start()
    try:
        found = [type(item) for item in ndjson_rows(body, rules=RULES)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [RowError, Row]
    assert peak < 1_000_000


def test_json_rows_are_counted_from_one() -> None:
    found = list(
        json_rows(
            b'{"examples": [{"text": "a", "label": "b"}, 5, {"text": "\\ud800", "label": "b"}]}', rules=RULES
        )
    )
    assert [(item.line, getattr(item, "code", "ok")) for item in found] == [
        (1, "ok"), (2, "not_an_object"), (3, "invalid_unicode"),
    ]  # fmt: skip


def test_a_json_row_over_the_limit_is_an_error() -> None:
    body = b'{"examples": [{"text": "' + b"x" * 300 + b'", "label": "b"}]}'
    assert [getattr(item, "code", "ok") for item in json_rows(body, rules=RULES)] == ["row_too_long"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"examples": [NaN]}', "invalid_json"),
        (b"[]", "invalid_body"),
        (b'{"examples": {}}', "invalid_body"),
        (b'{"examples": [], "more": 1}', "invalid_body"),
    ],
)
def test_json_that_is_no_list_of_rows_is_refused_whole(body: bytes, code: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        list(json_rows(body, rules=RULES))
    assert caught.value.code == code
