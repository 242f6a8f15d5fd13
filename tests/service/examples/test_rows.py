"""Rows of an ingest body, one by one: what is taken, what is refused, and that no bytes break the parser."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.examples.content import normalised, split_of, text_hash
from service.examples.rows import FIELDS, Row, RowError, RowRules, parse_line, parse_object
from service.examples.schemas import ExampleCreate

CLASSIFICATION = RowRules(task_type="text-classification", max_row_bytes=1 << 20, max_label_length=20)
CAUSAL = RowRules(task_type="causal-lm", max_row_bytes=1 << 20, max_label_length=20)
GOOD = {"text": "where is my money", "label": "refund"}
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # Unicode tables load first
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.dictionaries(
    st.sampled_from([*sorted(FIELDS["causal-lm"]), "surprise"]), JSON_VALUES | st.just("x")
)


def parsed(row: Any, rules: RowRules = CLASSIFICATION) -> Row | RowError:
    return parse_line(json.dumps(row).encode(), line=1, rules=rules)


def accepted(row: Any, rules: RowRules = CLASSIFICATION) -> Row:
    result = parsed(row, rules)
    assert isinstance(result, Row), result
    return result


def refused(raw: bytes | dict[str, Any] | list[Any], rules: RowRules = CLASSIFICATION) -> str:
    line = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    result = parse_line(line, line=7, rules=rules)
    assert isinstance(result, RowError), result
    assert result.line == 7
    assert result.detail
    return result.code


def test_a_full_row_keeps_everything_it_came_with() -> None:
    row = accepted(
        {**GOOD, "id": 12, "split": "eval", "subject": "customer-1", "weight": 2, "metadata": {"k": [1]}}
    )
    assert row.external_id == "12"
    assert row.asked_split == "eval"
    assert json.loads(row.content) == {"text": GOOD["text"]}
    assert row.label == "refund"
    assert (row.weight, row.subject, row.metadata) == (2.0, "customer-1", '{"k":[1]}')


def test_null_is_the_same_as_a_missing_optional_key() -> None:
    assert accepted(
        {**GOOD, "id": None, "split": None, "subject": None, "weight": None, "metadata": None}
    ) == accepted(GOOD)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ([1], "not_an_object"),
        ({"label": "a"}, "missing_text"),
        ({"text": None, "label": "a"}, "missing_text"),
        ({"text": " \n", "label": "a"}, "empty_text"),
        ({"text": 5, "label": "a"}, "wrong_type"),
        ({"text": "a"}, "missing_label"),
        ({"text": "a", "label": ""}, "empty_label"),
        ({"text": "a", "label": 3}, "wrong_type"),
        ({"text": "a", "label": "x" * 21}, "label_too_long"),
        ({**GOOD, "lable": "x"}, "unknown_field"),
        ({**GOOD, "split": "test"}, "invalid_split"),
        ({**GOOD, "split": ["train"]}, "invalid_split"),
        ({**GOOD, "id": 1.5}, "wrong_type"),
        ({**GOOD, "id": True}, "wrong_type"),
        ({**GOOD, "id": ""}, "invalid_id"),
        ({**GOOD, "id": "x" * 129}, "invalid_id"),
        ({**GOOD, "id": "ex_5"}, "reserved_id"),
        ({**GOOD, "subject": 5}, "wrong_type"),
        ({**GOOD, "subject": "x" * 257}, "invalid_subject"),
        ({**GOOD, "weight": 0}, "invalid_weight"),
        ({**GOOD, "weight": 10**400}, "invalid_weight"),
        ({**GOOD, "weight": "1"}, "wrong_type"),
        ({**GOOD, "metadata": [1]}, "wrong_type"),
        ({**GOOD, "metadata": {"k": "a\0b"}}, "nul_character"),
        ({**GOOD, "metadata": {"a\0b": 1}}, "nul_character"),
        ({**GOOD, "id": "a\0b"}, "nul_character"),
        ({"text": "half \ud800", "label": "a"}, "invalid_unicode"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_with_its_code(row: Any, code: str) -> None:
    assert refused(row) == code


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"text": "a", "label": "b"', "invalid_json"),
        (b'{"text": "a", "label": NaN}', "invalid_json"),
        (b'{"text": "a"} {"text": "b"}', "invalid_json"),
        (b'{"text": "a\xff", "label": "b"}', "invalid_utf8"),
        (b'{"text": "a\x00b", "label": "b"}', "nul_character"),
        (b'{"metadata": ' + b"[" * 100_000, "nested_too_deep"),
        (b'{"text": "a", "label": "b", "metadata": {"k": 1e999}}', "number_out_of_range"),
        (b'{"text": "a", "label": "b", "metadata": {"k": ' + b"9" * 5000 + b"}}", "invalid_json"),
    ],
)
def test_a_broken_line_is_refused_with_its_code(raw: bytes, code: str) -> None:
    assert refused(raw) == code


def test_a_backslash_before_u0000_is_text_and_not_a_nul() -> None:
    assert accepted({"text": r"the escape \u0000", "label": "a"}).label == "a"


@pytest.mark.parametrize(
    ("row", "content"),
    [
        ({"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": "c"}),
        ({"text": "t"}, {"text": "t"}),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ),
    ],
)
def test_causal_rows_come_in_three_shapes(row: Any, content: Any) -> None:
    assert json.loads(accepted(row, CAUSAL).content) == content


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"text": "t", "label": "a"}, "unexpected_label"),
        ({"prompt": "p"}, "missing_text"),
        ({"completion": "c"}, "missing_text"),
        ({}, "missing_text"),
        ({"text": "t", "prompt": "p", "completion": "c"}, "wrong_type"),
        ({"messages": "hello"}, "wrong_type"),
        ({"messages": [{"role": "user", "content": "q"}]}, "missing_text"),
        ({"messages": [{"role": "robot", "content": "q"}]}, "wrong_type"),
        ({"messages": [{"role": "user", "content": "q", "name": "x"}]}, "unknown_field"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "empty_text"),
    ],
)
def test_a_bad_causal_row_is_refused_with_its_code(row: Any, code: str) -> None:
    assert refused(row, CAUSAL) == code


def test_a_corrected_label_is_other_content_on_the_same_text() -> None:
    before, after = accepted(GOOD), accepted({**GOOD, "label": "delivery"})
    assert before.content_hash != after.content_hash
    assert before.text_hash == after.text_hash


def test_parts_of_the_content_cannot_be_shifted_into_each_other() -> None:
    assert (
        accepted({"prompt": "ab", "completion": "c"}, CAUSAL).content_hash
        != accepted({"prompt": "a", "completion": "bc"}, CAUSAL).content_hash
    )


def test_prompts_with_several_completions_share_a_side() -> None:
    rows = [accepted({"prompt": "the same", "completion": answer}, CAUSAL) for answer in ("a", "b")]
    assert rows[0].text_hash == rows[1].text_hash


def test_case_blanks_and_unicode_form_do_not_change_the_split_of_a_text() -> None:
    assert normalised(" Where\tIS  Caf\u00e9\n") == normalised("where is cafe\u0301")


def test_one_text_in_ten_goes_to_eval() -> None:
    sides = [split_of(text_hash(f"text number {number}")) for number in range(20_000)]
    assert 1850 < sides.count("eval") < 2150  # 2000 expected, standard deviation 42


def test_the_documented_row_has_exactly_the_keys_that_are_taken() -> None:
    assert set(ExampleCreate.model_fields) == FIELDS["causal-lm"] | FIELDS["text-classification"]


@UNHURRIED
@given(st.binary())
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    assert isinstance(parse_line(raw, line=1, rules=CLASSIFICATION), Row | RowError)


@UNHURRIED
@given(ROWS, st.sampled_from([CLASSIFICATION, CAUSAL]))
def test_no_json_breaks_the_parser_and_what_it_takes_can_be_stored(
    row: dict[str, Any], rules: RowRules
) -> None:
    for result in (parsed(row, rules), parse_object(row, line=1, rules=rules)):
        if isinstance(result, Row):
            stored = (result.external_id, result.content, result.label, result.subject, result.metadata)
            assert not any("\0" in part for part in stored if part is not None)
            "".join(part for part in stored if part is not None).encode()
            json.loads(result.content, parse_constant=pytest.fail)
