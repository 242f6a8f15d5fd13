"""Splits: one text stands on one side of a model, whatever order, task or spelling it comes in."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from httpx import Response

from service.examples import loading
from service.examples.content import split_of, text_hash

Post = Callable[..., Response]
Rows = Callable[..., list[dict[str, Any]]]


def text_that_goes_to(split: str) -> str:
    return next(f"text {n}" for n in range(1000) if split_of(text_hash(f"text {n}")) == split)


def test_a_text_without_a_split_goes_where_its_hash_says(post: Post, rows: Rows) -> None:
    post(*[{"text": f"text {number}", "label": "a"} for number in range(100)])
    for row in rows():
        assert row["split"] == split_of(text_hash(row["text"]))


def test_a_stored_text_keeps_its_split_in_every_task_and_spelling(post: Post, rows: Rows) -> None:
    text = text_that_goes_to("train")
    post({"text": text, "label": "a", "split": "eval"})
    post({"text": f"  {text.upper()} ", "label": "b"}, task="delivery")
    assert [row["split"] for row in rows("delivery")] == ["eval"]


def test_asking_for_the_other_side_of_a_stored_text_is_an_error(post: Post) -> None:
    post({"text": "a text", "label": "a", "split": "eval"})
    answer = post({"text": "A Text", "label": "b", "split": "train"}, task="delivery")
    assert answer.status_code == 422
    error = answer.json()["errors"][0]
    assert (error["line"], error["code"]) == (1, "split_conflict")
    assert "eval" in error["detail"]
    assert post({"text": "A Text", "label": "b", "split": "eval"}, task="delivery").json()["accepted"] == 1


def test_stored_texts_are_met_in_a_body_so_large_that_they_are_looked_up_in_parts(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "TEXTS_AT_ONCE", 3)
    texts = [f"text {number}" for number in range(200)]
    post(*[{"text": text, "label": "a", "split": "eval"} for text in texts])
    answer = post(*[{"text": text, "label": "b", "split": "train"} for text in texts], task="delivery")
    errors = answer.json()["errors"]
    assert {error["code"] for error in errors} == {"split_conflict"}
    assert [error["line"] for error in errors] == list(range(1, 101)), "the first hundred are shown"
    assert post(*[{"text": text, "label": "b"} for text in texts], task="delivery").json()["accepted"] == 200


def test_rows_of_one_body_that_contradict_each_other_are_an_error(post: Post) -> None:
    body = [{"text": "t", "label": "a", "split": "train"}, {"text": "T", "label": "b", "split": "eval"}]
    errors = post(*body).json()["errors"]
    assert [(error["line"], error["code"]) for error in errors] == [(2, "split_conflict")]
    assert "line 1" in errors[0]["detail"]


def test_a_row_without_a_split_follows_one_of_the_same_text_in_any_order(post: Post, rows: Rows) -> None:
    text = text_that_goes_to("train")
    body = [{"text": text, "label": "a"}, {"text": text, "label": "b", "split": "eval"}]
    post(*body)
    post(*[{**row, "text": text_that_goes_to("eval")} for row in reversed(body)], task="delivery")
    assert [row["split"] for row in rows()] == ["eval", "eval"]
    assert {row["split"] for row in rows("delivery")} == {"eval"}


def test_splits_do_not_depend_on_the_order_of_the_body(post: Post, rows: Rows) -> None:
    body = [{"text": f"text {number % 40}", "label": f"label {number}"} for number in range(120)]
    body += [{"text": f"text {number}", "label": "asked", "split": "eval"} for number in range(10)]
    shuffled = random.Random(3).sample(body, len(body))
    post(*body)
    forward = {(row["text"], row["label"]): row["split"] for row in rows()}
    for row in rows():
        assert row["split"] == ("eval" if int(row["text"][5:]) < 10 else split_of(text_hash(row["text"])))
    post(*[{**row, "text": row["text"]} for row in shuffled], task="delivery")
    assert {(row["text"], row["label"]): row["split"] for row in rows("delivery")} == forward


def test_a_corrected_text_leaves_its_old_side_taken(post: Post, rows: Rows) -> None:
    text = text_that_goes_to("train")
    post({"text": text, "label": "a", "id": "1", "split": "eval"})
    post({"text": "something else", "label": "a", "id": "1"})
    post({"text": text, "label": "a", "id": "2"})
    assert {row["id"]: row["split"] for row in rows()}["2"] == "eval"  # the old row was scored on that side
