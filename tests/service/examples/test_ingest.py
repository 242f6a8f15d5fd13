"""Ingest over HTTP: what is stored, what counts as a duplicate, what replaces, what is refused."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.config import get_settings

Post = Callable[..., Response]
Rows = Callable[..., list[dict[str, Any]]]
NDJSON = {"Content-Type": "application/x-ndjson"}
URL = "/v1/models/support/tasks/refunds/examples"
GOOD = {"text": "where is my money", "label": "refund"}


def codes(answer: Response) -> list[tuple[int, str]]:
    return [(error["line"], error["code"]) for error in answer.json()["errors"]]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Changes limits of the settings for one test."""

    def change(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"PALIMPSEST_{name.upper()}", str(value))
        get_settings.cache_clear()

    yield change
    monkeypatch.undo()
    get_settings.cache_clear()


def test_ndjson_and_json_store_the_same_rows(client: TestClient, post: Post, rows: Rows) -> None:
    body = [
        {**GOOD, "id": "1", "subject": "ann", "weight": 2.5, "metadata": {"k": "é"}},
        {"text": "b", "label": "x"},
    ]
    assert post(*body).json()["accepted"] == 2
    answer = client.post("/v1/models/support/tasks/delivery/examples", json={"examples": body})
    assert answer.json()["accepted"] == 2
    shown = [
        [
            {key: row[key] for key in ("text", "label", "subject", "weight", "metadata", "split")}
            for row in rows(task)
        ]
        for task in ("refunds", "delivery")
    ]
    assert shown[0] == shown[1]
    assert shown[0][0] == {
        "text": GOOD["text"], "label": "refund", "subject": "ann", "weight": 2.5, "metadata": {"k": "é"},
        "split": shown[0][0]["split"],
    }  # fmt: skip


def test_the_answer_counts_rows_and_shows_the_task(post: Post) -> None:
    answer = post(
        {**GOOD, "split": "train"}, {**GOOD, "split": "train"}, {"text": "b", "label": "x", "split": "eval"}
    )
    body = answer.json()
    assert (body["accepted"], body["duplicates"], body["replaced"], body["rejected"]) == (2, 1, 0, 0)
    assert (body["errors"], body["batch"]) == ([], 1)
    assert body["task"]["counts"] == {"train": 1, "eval": 1}


def test_sending_a_body_again_stores_nothing_and_takes_no_batch(post: Post) -> None:
    body = [{"text": f"text {number}", "label": "a", "id": number} for number in range(50)]
    assert post(*body).json()["batch"] == 1
    again = post(*body).json()
    assert (again["accepted"], again["duplicates"], again["batch"]) == (0, 50, None)
    assert post(GOOD).json()["batch"] == 2


def test_one_content_under_two_ids_is_a_duplicate(post: Post, rows: Rows) -> None:
    assert post({**GOOD, "id": "a"}, {**GOOD, "id": "b"}).json()["duplicates"] == 1
    assert post({**GOOD, "id": "c"}).json()["duplicates"] == 1
    assert [row["id"] for row in rows()] == ["a"]


def test_the_same_content_in_another_task_is_stored(post: Post) -> None:
    post(GOOD)
    assert post(GOOD, task="delivery").json()["accepted"] == 1


def test_a_known_id_with_new_content_replaces_the_row(post: Post, rows: Rows, session: Session) -> None:
    post({**GOOD, "id": "a"})
    answer = post({**GOOD, "id": "a", "label": "delivery"}).json()
    assert (answer["accepted"], answer["replaced"], answer["batch"]) == (1, 1, 2)
    assert [(row["id"], row["label"], row["batch"]) for row in rows()] == [("a", "delivery", 2)]
    history = session.execute(text("SELECT label, batch, superseded_batch FROM examples ORDER BY id")).all()
    assert [tuple(row) for row in history] == [("refund", 1, 2), ("delivery", 2, None)]


def test_a_correction_can_be_taken_back(post: Post, rows: Rows) -> None:
    for label in ("refund", "delivery", "refund"):
        assert post({**GOOD, "id": "a", "label": label}).json()["accepted"] == 1
    assert [row["label"] for row in rows()] == ["refund"]


def test_two_rows_may_swap_their_contents(post: Post, rows: Rows) -> None:
    post({**GOOD, "id": "a", "label": "x"}, {**GOOD, "id": "b", "label": "y"})
    answer = post({**GOOD, "id": "a", "label": "y"}, {**GOOD, "id": "b", "label": "x"}).json()
    assert (answer["accepted"], answer["replaced"]) == (2, 2)
    assert {row["id"]: row["label"] for row in rows()} == {"a": "y", "b": "x"}


def test_a_correction_that_equals_another_row_retires_the_wrong_one(post: Post, rows: Rows) -> None:
    post({**GOOD, "id": "wrong", "label": "x"}, {**GOOD, "id": "right", "label": "y"})
    answer = post({**GOOD, "id": "wrong", "label": "y"}).json()
    assert (answer["accepted"], answer["duplicates"], answer["replaced"], answer["batch"]) == (0, 1, 1, 2)
    assert [(row["id"], row["label"]) for row in rows()] == [("right", "y")]


def test_one_id_with_two_contents_in_a_body_is_an_error(post: Post, rows: Rows) -> None:
    body = [
        {**GOOD, "id": 7},
        {"text": "b", "label": "x"},
        {**GOOD, "id": "7", "label": "other"},
        {**GOOD, "id": 7},
    ]
    refused = post(*body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_examples")
    assert codes(refused) == [(3, "duplicate_id")]
    assert "line 1" in refused.json()["errors"][0]["detail"]
    skipped = post(*body, on_error="skip").json()
    assert (skipped["accepted"], skipped["duplicates"], skipped["rejected"]) == (2, 1, 1)
    assert len(rows()) == 2


BROKEN = [
    GOOD,
    b'{"text": "broken", "label": ',
    b'{"text": "' + b"x" * 2_000_000 + b'", "label": "long"}',
    b'{"text": "\xff", "label": "a"}',
    b'{"text": "nul \\u0000", "label": "a"}',
    b"",
    {"text": "no label"},
    {"text": "fine", "label": "b"},
]
BROKEN_CODES = [
    (2, "invalid_json"), (3, "row_too_long"), (4, "invalid_utf8"), (5, "nul_character"), (7, "missing_label"),
]  # fmt: skip


def test_one_bad_row_refuses_the_body_and_names_every_line(post: Post, rows: Rows) -> None:
    answer = post(*BROKEN)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert (body["code"], body["accepted"], body["rejected"]) == ("invalid_examples", 0, 5)
    assert codes(answer) == BROKEN_CODES
    assert rows() == []


def test_on_error_skip_stores_the_good_rows(post: Post, rows: Rows) -> None:
    answer = post(*BROKEN, on_error="skip")
    assert answer.status_code == 200
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (2, 5)
    assert codes(answer) == BROKEN_CODES
    assert [row["text"] for row in rows()] == [GOOD["text"], "fine"]


def test_only_the_first_hundred_errors_are_shown_and_all_are_counted(post: Post) -> None:
    answer = post(*[b"{"] * 150, GOOD).json()
    assert answer["rejected"] == 150
    assert [error["line"] for error in answer["errors"]] == list(range(1, 101))


def test_bad_rows_alone_are_no_batch(post: Post) -> None:
    answer = post(b"{", on_error="skip").json()
    assert (answer["accepted"], answer["rejected"], answer["batch"]) == (0, 1, None)


def test_a_body_without_rows_is_refused(client: TestClient, post: Post) -> None:
    for answer in (post(), post(b"\n\n"), client.post(URL, json={"examples": []})):
        assert (answer.status_code, answer.json()["code"]) == (422, "empty_body")


def test_labels_past_the_limit_are_errors(post: Post, limits: Callable[..., None]) -> None:
    post({"text": "one", "label": "a"}, {"text": "two", "label": "b"}, task="delivery")
    limits(max_labels_per_model=3)
    body = [{"text": str(number), "label": label} for number, label in enumerate("acdacb")]
    assert codes(post(*body)) == [(3, "too_many_labels")]
    assert post(*body, on_error="skip").json()["accepted"] == 5


def test_a_body_over_the_limit_is_a_413(client: TestClient, model: str, limits: Callable[..., None]) -> None:
    limits(max_body_bytes=2048)
    line = json.dumps(GOOD).encode() + b"\n"
    announced = client.post(URL, content=line * 100, headers=NDJSON)
    streamed = client.post(URL, content=iter([line] * 100), headers=NDJSON)
    for answer in (announced, streamed):
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_json_body_over_its_limit_is_a_413(client: TestClient, model: str) -> None:
    too_large = b'{"examples": [' + b" " * get_settings().max_json_body_bytes + b"]}"
    answer = client.post(URL, content=too_large, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/csv"},
        {"Content-Type": ""},
        {**NDJSON, "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
    ],
)
def test_other_types_and_encodings_are_a_415(client: TestClient, model: str, headers: dict[str, str]) -> None:
    answer = client.post(URL, content=json.dumps(GOOD), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_parameters_of_the_content_type_do_not_matter(client: TestClient, model: str) -> None:
    headers = {"Content-Type": "Application/X-NDJSON; charset=utf-8"}
    assert client.post(URL, content=json.dumps(GOOD), headers=headers).status_code == 200


def test_a_repeat_with_its_idempotency_key_is_answered_as_before(client: TestClient, post: Post) -> None:
    headers = {**NDJSON, "Idempotency-Key": "upload-1"}
    first = client.post(URL, content=json.dumps(GOOD), headers=headers)
    again = client.post(URL, content=json.dumps(GOOD), headers=headers)
    other = client.post(URL, content=json.dumps({**GOOD, "label": "x"}), headers=headers)
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.json()["accepted"] == 1
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_causal_lm_rows_are_stored_and_a_label_on_one_is_an_error(
    client: TestClient, session: Session, post: Post
) -> None:
    session.execute(text("UPDATE models SET task_type = 'causal-lm'"))
    session.commit()
    answer = post(
        {"prompt": "p", "completion": "c"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"text": "t", "label": "x"},
        on_error="skip",
    )
    assert codes(answer) == [(3, "unexpected_label")]
    assert answer.json()["task"]["labels"] == {}
    shown = client.get(URL).json()["data"]
    assert "text" not in shown[0]
    assert (shown[0]["prompt"], shown[0]["completion"], shown[0]["label"]) == ("p", "c", None)
    assert shown[1]["messages"][1] == {"role": "assistant", "content": "a"}


def test_unknown_places_are_404_and_an_archived_model_409(
    client: TestClient, other_client: TestClient, post: Post
) -> None:
    assert post(GOOD, task="nothing").json()["code"] == "task_not_found"
    assert other_client.post(URL, content=json.dumps(GOOD), headers=NDJSON).status_code == 404
    client.delete("/v1/models/support")
    assert post(GOOD).json()["code"] == "model_archived"


def test_two_bodies_at_once_store_every_row_once_and_take_gapless_batches(
    client: TestClient, post: Post, rows: Rows
) -> None:
    shared = [{"text": f"text {number}", "label": "a", "id": number} for number in range(300)]
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(
            target=lambda own=own: answers.append(post(*shared, {"text": own, "label": "a"}).json())
        )
        for own in ("one", "two", "three")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["batch"] for answer in answers) == [1, 2, 3]
    assert sum(answer["accepted"] for answer in answers) == 303
    assert sum(answer["duplicates"] for answer in answers) == 600
    assert len(rows()) == 303


def test_deeply_nested_metadata_comes_back_as_it_was(client: TestClient, post: Post, rows: Rows) -> None:
    nested: Any = "deep"
    for _ in range(150):
        nested = {"k": nested}
    assert post({**GOOD, "metadata": nested}).json()["accepted"] == 1
    assert rows()[0]["metadata"] == nested


def test_both_request_bodies_are_in_the_openapi_document(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/models/{model}/tasks/{task}/examples"][
        "post"
    ]
    content = operation["requestBody"]["content"]
    assert set(content) == {"application/x-ndjson", "application/json"}
    assert "text" in content["application/json"]["schema"]["properties"]["examples"]["items"]["properties"]
    assert "$ref" not in json.dumps(content)
    assert {"200", "413", "415", "422"} <= set(operation["responses"])
