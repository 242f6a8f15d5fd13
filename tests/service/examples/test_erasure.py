"""Reading single rows, deleting them, and erasing a data subject."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import session_scope
from service.examples.bodies import ndjson_rows
from service.examples.commands import hold_erasures, ingest, row_rules
from service.registry.queries import get_model
from service.tasks.queries import get_task

Post = Callable[..., Response]
Rows = Callable[..., list[dict[str, Any]]]
URL = "/v1/models/support/tasks/refunds/examples"


def teach(*, version: int, lineage: list[int], subject: str | None) -> None:
    values = {"version": version, "lineage": lineage, "subject": subject}
    with session_scope(tenant="acme", role="worker") as session:
        session.execute(
            text(
                "INSERT INTO versions (tenant_id, model_id, number, parent, lineage, parameters, training, cut, labels,"
                " statistics, provenance)"
                " SELECT tenant_id, id, :version, 0, :lineage, '{}', '{}', 1, '[]', '{}', '{}' FROM models"
            ),
            values,
        )
        session.execute(
            text(
                "INSERT INTO replay_entries (tenant_id, model_id, version, stratum, priority, example_id)"
                " SELECT tenant_id, model_id, :version, 's', random(), id FROM examples WHERE subject = :subject"
            ),
            values,
        )


def test_an_erasure_waits_for_a_version_that_is_being_recorded(client: TestClient, post: Post) -> None:
    post({"id": "one", "text": "a text", "label": "a", "subject": "anna"}, {"text": "another", "label": "b"})
    calls = (
        lambda: client.delete(f"{URL}/one"),
        lambda: client.delete("/v1/models/support/examples", params={"subject": "anna"}),
        lambda: client.delete("/v1/models/support/tasks/refunds"),
    )
    for call in calls:
        with ThreadPoolExecutor(1) as pool:
            with session_scope(tenant="acme", role="worker") as session:
                hold_erasures(session, model_id=session.scalars(text("SELECT id FROM models")).one())
                answer = pool.submit(call)
                with pytest.raises(TimeoutError):
                    answer.result(timeout=0.5)
            assert answer.result(timeout=10).status_code in (200, 204)


def test_an_erasure_waits_for_an_ingest_that_says_whose_a_stored_row_is_and_takes_its_older_form_too(
    client: TestClient, post: Post
) -> None:
    post({"id": "one", "text": "a text", "label": "a"})
    post({"id": "one", "text": "corrected", "label": "a"})
    with ThreadPoolExecutor(1) as pool:
        with session_scope(tenant="acme") as session:
            model = get_model(session, model="support")
            task = get_task(session, model=model, task="refunds")
            body = BytesIO(b'{"text": "corrected", "label": "a", "subject": "anna"}')
            same = ndjson_rows(body, rules=row_rules(model))
            assert ingest(session, model=model, task=task, rows=same, on_error="abort").duplicates == 1
            answer = pool.submit(client.delete, "/v1/models/support/examples", params={"subject": "anna"})
            with pytest.raises(TimeoutError):
                answer.result(timeout=0.5)
        assert answer.result(timeout=10).json()["deleted"] == 2


def test_rows_are_listed_page_by_page_in_the_order_they_came(client: TestClient, post: Post) -> None:
    post(*[{"text": f"text {number}", "label": "a"} for number in range(25)])
    texts, cursor = [], None
    while True:
        page = client.get(URL, params={"limit": 10} | ({"cursor": cursor} if cursor else {})).json()
        texts += [row["text"] for row in page["data"]]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert texts == [f"text {number}" for number in range(25)]


def test_rows_are_filtered_by_split_label_and_subject(post: Post, rows: Rows) -> None:
    post(
        {"text": "1", "label": "a", "split": "train", "subject": "ann"},
        {"text": "2", "label": "b", "split": "train", "subject": "ben"},
        {"text": "3", "label": "a", "split": "eval"},
    )
    assert [row["text"] for row in rows(split="train")] == ["1", "2"]
    assert [row["text"] for row in rows(label="a")] == ["1", "3"]
    assert [row["text"] for row in rows(subject="ben")] == ["2"]


def test_a_row_is_found_by_its_id_or_the_one_it_was_given(client: TestClient, post: Post, rows: Rows) -> None:
    post({"text": "mine", "label": "a", "id": "ticket/8841"}, {"text": "yours", "label": "a"})
    given = rows()[1]["id"]
    assert given.startswith("ex_")
    assert client.get(f"{URL}/ticket/8841").json()["text"] == "mine"
    assert client.get(f"{URL}/{given}").json()["text"] == "yours"


def test_a_deleted_row_is_gone_with_the_rows_it_replaced(
    client: TestClient, post: Post, session: Session
) -> None:
    for label in ("a", "b"):
        post({"text": "t", "label": label, "id": "1"})
    post({"text": "stays", "label": "a", "id": "2"})
    assert client.delete(f"{URL}/1").status_code == 204
    assert session.scalars(text("SELECT external_id FROM examples")).all() == ["2"]
    assert client.delete(f"{URL}/1").json()["code"] == "example_not_found"


def test_an_unknown_row_is_a_404(client: TestClient, model: str) -> None:
    for example in ("nothing", "ex_1", "ex_999999999999999999", "ex_9999999999999999999999"):
        assert client.get(f"{URL}/{example}").status_code == 404
        assert client.delete(f"{URL}/{example}").status_code == 404


def test_another_tenant_can_neither_read_nor_delete_a_row(
    client: TestClient, other_client: TestClient, post: Post
) -> None:
    post({"text": "t", "label": "a", "id": "1", "subject": "ann"})
    assert other_client.get(f"{URL}/1").status_code == 404
    assert other_client.delete(f"{URL}/1").status_code == 404
    assert other_client.delete("/v1/models/support/examples", params={"subject": "ann"}).status_code == 404
    assert client.get(f"{URL}/1").status_code == 200


def test_erasing_a_subject_deletes_its_rows_everywhere_and_names_the_versions(
    client: TestClient, post: Post, session: Session
) -> None:
    post(
        {"text": "1", "label": "a", "subject": "ann", "id": "x"},
        {"text": "2", "label": "a", "subject": "ben"},
    )
    post({"text": "1", "label": "b", "subject": "ann", "id": "x"})
    post({"text": "3", "label": "a", "subject": "ann"}, task="delivery")
    teach(version=1, lineage=[0, 1], subject="ben")
    teach(version=2, lineage=[0, 1, 2], subject="ann")
    teach(version=3, lineage=[0, 1, 2, 3], subject=None)
    teach(version=4, lineage=[0, 1, 4], subject=None)
    answer = client.delete("/v1/models/support/examples", params={"subject": "ann"})
    assert {name: answer.json()[name] for name in ("deleted", "versions", "inherited_by")} == {
        "deleted": 3,
        "versions": [2],
        "inherited_by": [3],
    }
    assert session.scalars(text("SELECT subject FROM examples")).all() == ["ben"]
    assert session.scalar(text("SELECT count(*) FROM replay_entries")) == 1


def test_erasing_an_unknown_subject_deletes_nothing(client: TestClient, post: Post) -> None:
    post({"text": "1", "label": "a", "subject": "ann"})
    answer = client.delete("/v1/models/support/examples", params={"subject": "nobody"})
    assert (answer.json()["deleted"], answer.json()["versions"], answer.json()["rebuild"]) == (0, [], None)


def test_erasing_needs_a_subject(client: TestClient, post: Post) -> None:
    assert client.delete("/v1/models/support/examples").status_code == 422
    assert client.delete("/v1/models/support/examples", params={"subject": "a\0b"}).status_code == 422


def test_an_archived_model_can_still_be_asked_to_forget(client: TestClient, post: Post) -> None:
    post({"text": "1", "label": "a", "subject": "ann"})
    client.delete("/v1/models/support")
    assert client.delete("/v1/models/support/examples", params={"subject": "ann"}).json()["deleted"] == 1


def erase(client: TestClient, subject: str) -> dict[str, Any]:
    """Erases a subject; returns the answer."""
    answer = client.delete("/v1/models/support/examples", params={"subject": subject})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_a_correction_without_subject_goes_with_the_subject_of_the_row_it_corrects(
    client: TestClient, post: Post, session: Session
) -> None:
    post({"id": "r1", "text": "a text", "label": "a", "subject": "zoe"}, {"text": "stays", "label": "a"})
    post({"id": "r1", "text": "a text", "label": "b"})
    assert session.execute(text("SELECT label, subject FROM examples WHERE external_id = 'r1'")).all() == [
        ("a", "zoe"),
        ("b", "zoe"),
    ]
    assert erase(client, "zoe")["deleted"] == 2
    assert session.scalars(text("SELECT content->>'text' FROM examples")).all() == ["stays"]


def test_a_correction_stored_without_subject_goes_too_and_taints_what_learnt_only_it(
    client: TestClient, post: Post, session: Session
) -> None:
    post({"id": "r1", "text": "a text", "label": "a", "subject": "zoe"})
    post({"id": "r1", "text": "a text", "label": "b", "subject": "of the correction"})
    post({"id": "r1", "text": "of another task", "label": "b"}, task="delivery")
    teach(version=1, lineage=[0, 1], subject="of the correction")
    with session_scope(tenant="acme") as storing:  # as rows were stored before corrections inherited
        storing.execute(text("UPDATE examples SET subject = NULL WHERE subject = 'of the correction'"))
    told = erase(client, "zoe")
    assert (told["deleted"], told["versions"]) == (2, [1])
    assert session.scalars(text("SELECT content->>'text' FROM examples")).all() == ["of another task"]


def test_a_correction_that_adds_the_subject_takes_the_corrected_row_along(
    client: TestClient, post: Post, session: Session
) -> None:
    post({"id": "r1", "text": "a text", "label": "a"})
    post({"id": "r1", "text": "a text", "label": "b", "subject": "zoe"})
    assert erase(client, "zoe")["deleted"] == 2
    assert session.scalar(text("SELECT count(*) FROM examples")) == 0


def test_content_that_is_sent_again_with_a_subject_becomes_that_subjects(
    client: TestClient, post: Post, session: Session
) -> None:
    row = {"text": "a text", "label": "a"}
    post(row, {"text": "stays", "label": "a"})
    again = post({**row, "subject": "zoe"}).json()
    assert (again["accepted"], again["duplicates"], again["batch"]) == (0, 1, None)
    assert erase(client, "zoe")["deleted"] == 1
    assert session.scalars(text("SELECT content->>'text' FROM examples")).all() == ["stays"]


def test_content_that_stands_twice_in_a_body_belongs_to_the_subject_that_either_line_names(
    client: TestClient, post: Post
) -> None:
    row = {"text": "a text", "label": "a"}
    post(row, {**row, "subject": "zoe"}, row)
    assert erase(client, "zoe")["deleted"] == 1


def test_content_of_one_subject_cannot_be_sent_as_anothers(post: Post, rows: Rows) -> None:
    row = {"text": "a text", "label": "a"}
    post({**row, "subject": "zoe"})
    stored = rows()[0]["id"]
    other = {"text": "another", "label": "a"}
    answer = post(
        row, {**row, "subject": "zoe"}, {**row, "subject": "yan"},
        {**other, "subject": "yan"}, {**other, "subject": "zoe"}, on_error="skip",
    ).json()  # fmt: skip
    assert [(error["line"], error["code"]) for error in answer["errors"]] == [
        (3, "subject_conflict"),
        (5, "subject_conflict"),
    ]
    assert f"stored as {stored}" in answer["errors"][0]["detail"]
    assert "on line 4" in answer["errors"][1]["detail"]
    assert [row["subject"] for row in rows()] == ["zoe", "yan"]


def test_content_that_a_body_replaces_may_come_again_as_anothers(post: Post, rows: Rows) -> None:
    first, second = {"text": "first", "label": "a"}, {"text": "second", "label": "a"}
    post({**first, "id": "1", "subject": "zoe"}, {**second, "id": "2", "subject": "yan"})
    assert post({**second, "id": "1"}, {**first, "id": "2"}).json()["replaced"] == 2
    assert [(row["text"], row["subject"]) for row in rows()] == [("second", "zoe"), ("first", "yan")]


def test_an_erasure_blanks_the_row_errors_in_stored_answers_and_keeps_repeats_harmless(
    client: TestClient, model: str, session: Session
) -> None:
    body = {
        "examples": [
            {"id": "zoe@example.org", "text": "a text", "label": "a", "subject": "zoe"},
            {"id": "zoe@example.org", "text": "another", "label": "a", "subject": "zoe"},
        ]
    }

    def send() -> dict[str, Any]:
        url, key = f"{URL}?on_error=skip", {"Idempotency-Key": "upload"}
        told: dict[str, Any] = client.post(url, json=body, headers=key).json()
        return told

    first = send()
    assert "zoe@example.org" in first["errors"][0]["detail"]
    erase(client, "zoe")
    assert "zoe@example.org" not in str(session.scalars(text("SELECT body FROM idempotency_keys")).all())
    assert send() == {**first, "errors": []}
    assert session.scalar(text("SELECT count(*) FROM examples")) == 0
