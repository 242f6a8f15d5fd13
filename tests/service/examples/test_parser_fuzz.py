"""Ingest under bytes nobody meant to send: no crash, no row cut in two, and what is taken is stored as it came."""

import io
import json
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import Unprocessable
from service.examples.bodies import BYTE_ORDER_MARK, JSON, NDJSON, json_rows, ndjson_rows
from service.examples.rows import FIELDS, Row, RowError, RowRules, parse_line
from tests.scenes import World

LONGEST = 120
CLASSIFICATION = RowRules(task_type="text-classification", max_row_bytes=LONGEST, max_label_length=20)
CAUSAL = RowRules(task_type="causal-lm", max_row_bytes=LONGEST, max_label_length=20)
UNHURRIED = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SHOWN = 1000  # characters of an error at most: a hundred of them make an answer

words = st.text(max_size=12) | st.sampled_from(
    ["a", "\ufeff", "\u2028", "e\u0301", "🙂", "\x7f", "\\u0000", "ex_1"]
)
numbers = (
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([10**30, -(10**300), 2**63, 5e-324, 1e308, -0.0, 0.1])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "robot"]), "content": words})
optional = {
    "id": words | st.integers(), "split": st.sampled_from(["train", "eval", "test"]), "subject": words,
    "weight": numbers, "metadata": st.dictionaries(words, values, max_size=3), "surprise": values,
    "prompt": words, "completion": words, "messages": st.lists(turns, max_size=3),
}  # fmt: skip
wild = st.dictionaries(st.sampled_from(sorted(FIELDS["causal-lm"])), values, max_size=4)
likely = st.fixed_dictionaries(
    {"text": st.text(min_size=1, max_size=12), "label": st.sampled_from(["a", "ä"])},
    optional={name: optional[name] for name in ("id", "split", "subject", "weight", "metadata")},
)
strange = [
    b"", b" ", b"\t", b"{}", b"[]", b"null", b"{", b'{"text": "a", "label": "b"', b"\0", b"\xff\xfe", b"\xc3",
    BYTE_ORDER_MARK, b'{"text": "a", "text": "b", "label": "c"}', b'{"text": "\\ud800", "label": "c"}',
    b'{"text": "a", "label": "b", "weight": NaN}', b'{"text": "a", "label": "b", "weight": -Infinity}',
    b'{"text": "a", "label": "b", "metadata": {"n": 1e999}}', b'{"text": "a\\u0000", "label": "b"}',
    b'{"text": "a", "label": "b", "id": ' + b"9" * 60 + b"}", b'{"text": "' + b"x" * LONGEST + b'", "label": "b"}',
]  # fmt: skip
ends = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\r\n", b"\r"])


def encoded(row: object) -> bytes:
    """One row as a client may write it."""
    return json.dumps(row, ensure_ascii=False).encode(errors="surrogatepass")


nested = st.tuples(st.sampled_from([b"[", b'{"k":']), st.integers(1, 40) | st.integers(150, 1100)).map(
    lambda of: b'{"text":"a","label":"b","metadata":{"k":' + of[0] * of[1]
)
padded = st.builds(lambda row, blanks: encoded(row) + b" " * blanks, likely, st.integers(0, LONGEST))
lines = likely.map(encoded) | likely.map(encoded) | padded | wild.map(encoded) | st.sampled_from(strange)
lines |= st.binary(max_size=30) | nested
bodies = st.builds(
    lambda mark, parts: mark + b"".join(line + end for line, end in parts),
    st.sampled_from([b"", BYTE_ORDER_MARK]),
    st.lists(st.tuples(lines, ends), max_size=6),
)


class Trickle(io.RawIOBase):
    """A stream that gives its bytes in pieces cut at chosen places."""

    def __init__(self, body: bytes, cuts: list[int]) -> None:
        self._pieces = list(pieces(body, cuts))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._pieces.pop(0) if self._pieces else b""
        taken, rest = piece[: len(buffer)], piece[len(buffer) :]
        if rest:
            self._pieces.insert(0, rest)
        buffer[: len(taken)] = taken
        return len(taken)


def pieces(body: bytes, cuts: list[int]) -> Iterator[bytes]:
    """The body in pieces, none of them empty."""
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    return (body[start:end] for start, end in pairwise(places))


def plainly(body: bytes, rules: RowRules) -> list[Row | RowError]:
    """The rows of a body read the simple way, whole and in memory: what the streaming reader must agree with."""
    found = []
    for number, line in enumerate(body.removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        if len(line.removesuffix(b"\r")) > rules.max_row_bytes:
            found.append((number, "row_too_long"))
        elif line.strip():
            found.append(parse_line(line, line=number, rules=rules))
    return found


def shown(item: Row | RowError | tuple[int, str]) -> object:
    """A row as it is, an error by line and code."""
    return item if isinstance(item, Row) else item[:2]


@settings(UNHURRIED, max_examples=150)
@given(
    body=bodies,
    cuts=st.lists(st.integers(0, 10_000), max_size=8),
    rules=st.sampled_from([CLASSIFICATION, CAUSAL]),
)
def test_a_streamed_body_gives_the_rows_of_its_lines_wherever_it_is_cut(
    body: bytes, cuts: list[int], rules: RowRules
) -> None:
    streamed = list(ndjson_rows(io.BufferedReader(Trickle(body, cuts), buffer_size=16), rules=rules))
    assert [shown(item) for item in streamed] == [shown(item) for item in plainly(body, rules)]
    assert all(len(item.detail) <= SHOWN for item in streamed if isinstance(item, RowError))


@settings(UNHURRIED, max_examples=150)
@given(raw=lines | st.binary(max_size=200), rules=st.sampled_from([CLASSIFICATION, CAUSAL]))
def test_no_line_and_no_body_of_json_raises_anything_but_its_refusal(raw: bytes, rules: RowRules) -> None:
    assert isinstance(parse_line(raw, line=1, rules=rules), Row | RowError)
    for body in (raw, b'{"examples":[' + raw + b"]}"):
        found = json_outcome(body, rules)
        if isinstance(found, Unprocessable):
            assert len(str(found)) <= SHOWN
        else:
            assert all(isinstance(item, Row | RowError) for item in found)


def json_outcome(body: bytes, rules: RowRules) -> list[Row | RowError] | Unprocessable:
    """What a JSON body holds, or why it is refused whole."""
    try:
        return list(json_rows(body, rules=rules))
    except Unprocessable as refusal:
        return refusal


@pytest.mark.parametrize("opening", [b"[", b'{"k":'])
@pytest.mark.parametrize("surrogate", [b"", b'"\\ud800",'])
def test_no_depth_of_nesting_breaks_the_parser(opening: bytes, surrogate: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    for depth in [1, 100, 150, 190, 200, 500, *range(940, 1000, 5), 5000]:
        inner = opening * depth + b"1" + closing * depth
        row = b'{"text":"a","label":"b","metadata":{"k":[' + surrogate + inner + b"]}}"
        assert isinstance(parse_line(row, line=1, rules=CLASSIFICATION), Row | RowError)
        found = json_outcome(b'{"examples":[' + row + b"]}", CLASSIFICATION)
        if isinstance(found, Unprocessable):
            assert found.code == "invalid_json"
        else:
            assert isinstance(found[0], RowError) or depth < 200


def test_the_error_of_an_endless_key_is_short() -> None:
    rules = RowRules(task_type="causal-lm", max_row_bytes=1 << 20, max_label_length=20)
    message = {"role": "user", "content": "q", "k" * 100_000: 1}
    for row in ({"messages": [message]}, {"k" * 100_000: 1}):
        error = parse_line(encoded(row), line=1, rules=rules)
        assert isinstance(error, RowError)
        assert error.code == "unknown_field"
        assert len(error.detail) <= SHOWN


@settings(UNHURRIED, max_examples=15)
@given(
    parts=st.lists(
        st.tuples(likely.map(encoded) | lines, st.sampled_from([b"\n", b"\r\n"])), min_size=1, max_size=8
    ),
    cuts=st.lists(st.integers(0, 10_000), max_size=4),
    on_error=st.sampled_from(["skip", "skip", "abort"]),
)
def test_the_door_answers_every_body_and_stores_what_it_takes_exactly(
    world: World, parts: list[tuple[bytes, bytes]], cuts: list[int], on_error: str
) -> None:
    body = b"".join(line + end for line, end in parts)
    name = fresh_model(world)
    url = f"/v1/models/{name}/tasks/t/examples"
    answer = send(world.client, f"{url}?on_error={on_error}", body, cuts, media_type=NDJSON)
    rules = RowRules(task_type="text-classification", max_row_bytes=1 << 20, max_label_length=256)
    read = plainly(body, rules)
    stored = world.client.get(url, params={"limit": 500})
    listed = json.loads(stored.text, parse_float=Decimal, parse_int=Decimal)["data"]
    if answer is None:
        assert listed == []
        return
    assert answer["accepted"] + answer["duplicates"] + answer["rejected"] == len(read)
    assert len(listed) == answer["accepted"]
    sent = [exact(row) for row in read if isinstance(row, Row)]
    for row in listed:
        assert any(matches(row, one) for one in sent), row


@settings(UNHURRIED, max_examples=8)
@given(
    body=bodies | st.lists(likely).map(lambda rows: encoded({"examples": rows})),
    cuts=st.lists(st.integers(0, 10_000), max_size=4),
)
def test_the_door_answers_every_json_body(world: World, body: bytes, cuts: list[int]) -> None:
    send(world.client, f"/v1/models/{fresh_model(world)}/tasks/t/examples", body, cuts, media_type=JSON)


def fresh_model(world: World) -> str:
    """A model that has met no text yet, so that no split is settled."""
    name = f"m{len(world.get('/models?limit=500')['data'])}"
    world.model(name)
    world.ok(world.client.put(f"/v1/models/{name}/tasks/t"))
    return name


def send(
    client: TestClient, url: str, body: bytes, cuts: list[int], *, media_type: str
) -> dict[str, Any] | None:
    """Posts the body in pieces; the answer, or None where it was refused with a problem."""
    answer = client.post(url, content=pieces(body, cuts), headers={"Content-Type": media_type})
    document = answer.json()
    if answer.status_code == 200:
        return document
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["status"] == answer.status_code
    assert document["code"]
    return None


def exact(row: Row) -> dict[str, Any]:
    """What was sent, numbers as they were written."""
    metadata = json.loads(row.metadata or "null", parse_float=Decimal, parse_int=Decimal)
    return {
        **json.loads(row.content), "id": row.external_id, "label": row.label, "split": row.asked_split,
        "subject": row.subject, "weight": Decimal(repr(row.weight)), "metadata": metadata,
    }  # fmt: skip


def matches(stored: dict[str, Any], sent: dict[str, Any]) -> bool:
    """Whether a stored row is the one sent; id and split are the service's where none was sent."""
    given = {name: value for name, value in sent.items() if value is not None}
    return all(stored.get(name) == value for name, value in given.items()) and (
        sent["metadata"] is not None or stored.get("metadata") is None
    )
