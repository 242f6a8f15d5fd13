"""Tasks over HTTP: created once, counted, and deleted with everything in them."""

from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import session_scope
from tests.scenes import make_client

MODEL = {"name": "support", "base_model": "minilm-l6", "task_type": "text-classification"}
REFUNDS = "/v1/models/support/tasks/refunds"


def made(client: TestClient) -> TestClient:
    assert client.post("/v1/models", json=MODEL).status_code == 201
    assert client.put(REFUNDS).status_code == 201
    return client


def queue_update() -> None:
    with session_scope(tenant="acme") as session:
        session.execute(
            text(
                "INSERT INTO updates (tenant_id, id, model_id, task_ids, strategy, parameters, training, parent, relearn,"
                " promotion, metadata, cut, warnings, requested_by, state, max_attempts)"
                " SELECT tenant_id, 'upd_1', model_id, ARRAY[id], 'replay', '{}', '{}', 'champion', false, 'gate', '{}', 0,"
                " '[]', 'key:test', 'queued', 3 FROM tasks"
            )
        )


def end_update() -> None:
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE updates SET state = 'failed'"))


def test_putting_a_task_twice_creates_it_once(client: TestClient) -> None:
    client.post("/v1/models", json=MODEL)
    first, second = client.put(REFUNDS, json={"metadata": {"team": "billing"}}), client.put(REFUNDS)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.headers["Location"] == REFUNDS
    assert first.json() == second.json() == client.get(REFUNDS).json()
    assert first.json()["metadata"] == {"team": "billing"}
    assert first.json()["counts"] == {"train": 0, "eval": 0}


def test_metadata_sent_again_replaces_the_old(client: TestClient) -> None:
    made(client).put(REFUNDS, json={"metadata": {"a": 1}})
    assert client.put(REFUNDS, json={"metadata": {"b": 2}}).json()["metadata"] == {"b": 2}


def test_a_task_shows_its_examples_per_split_and_label(client: TestClient) -> None:
    rows = [{"text": f"yes {number}", "label": "yes", "split": "train"} for number in range(3)]
    rows += [{"text": f"no {number}", "label": "no", "split": "train"} for number in range(2)]
    rows += [{"text": "yes to score", "label": "yes", "split": "eval"}]
    made(client).post(f"{REFUNDS}/examples", json={"examples": rows})
    task = client.get(REFUNDS).json()
    assert task["counts"] == {"train": 5, "eval": 1}
    assert task["labels"] == {"no": {"train": 2, "eval": 0}, "yes": {"train": 3, "eval": 1}}


def test_tasks_are_listed_page_by_page(client: TestClient) -> None:
    client.post("/v1/models", json=MODEL)
    for name in ("a", "b", "c"):
        client.put(f"/v1/models/support/tasks/{name}")
    first = client.get("/v1/models/support/tasks", params={"limit": 2}).json()
    rest = client.get("/v1/models/support/tasks", params={"cursor": first["next_cursor"]}).json()
    assert [task["name"] for task in first["data"] + rest["data"]] == ["a", "b", "c"]
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_an_unknown_model_or_task_is_a_404_that_says_which(client: TestClient) -> None:
    made(client)
    assert client.get("/v1/models/nobody/tasks/refunds").json()["code"] == "model_not_found"
    answer = client.get("/v1/models/support/tasks/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")
    assert "nothing" in answer.json()["detail"]


def test_a_bad_task_name_is_a_422(client: TestClient) -> None:
    made(client)
    for name in ("a b", "x" * 129, "é"):
        assert client.put(f"/v1/models/support/tasks/{name}").status_code == 422


def test_a_nul_in_metadata_is_a_422(client: TestClient) -> None:
    assert made(client).put(REFUNDS, json={"metadata": {"k": "a\0b"}}).status_code == 422


def test_another_tenant_sees_no_task(client: TestClient, other_client: TestClient) -> None:
    made(client)
    assert other_client.get(REFUNDS).status_code == 404
    assert other_client.delete(REFUNDS).status_code == 404
    assert other_client.put(REFUNDS).status_code == 404
    assert other_client.get("/v1/models/support/tasks").status_code == 404


def test_an_archived_model_takes_no_new_task(client: TestClient) -> None:
    made(client).delete("/v1/models/support")
    assert client.put("/v1/models/support/tasks/more").json()["code"] == "model_archived"


def test_deleting_a_task_deletes_its_examples_and_frees_its_name(client: TestClient) -> None:
    made(client).post(
        f"{REFUNDS}/examples", json={"examples": [{"text": "t", "label": "l", "split": "eval"}]}
    )
    assert client.delete(REFUNDS).status_code == 204
    assert client.get(REFUNDS).status_code == 404
    assert client.delete(REFUNDS).status_code == 404
    assert client.put(REFUNDS).status_code == 201
    again = client.post(
        f"{REFUNDS}/examples", json={"examples": [{"text": "t", "label": "l", "split": "train"}]}
    )
    assert again.json()["task"]["counts"] == {"train": 1, "eval": 0}


def test_a_task_in_an_unfinished_update_is_not_deleted(client: TestClient) -> None:
    made(client)
    queue_update()
    answer = client.delete(REFUNDS)
    assert (answer.status_code, answer.json()["code"]) == (409, "task_in_use")
    assert answer.json()["updates"] == ["upd_1"]
    end_update()
    assert client.delete(REFUNDS).status_code == 204


def test_only_an_admin_guards_a_task_and_the_audit_tells(client: TestClient) -> None:
    assert client.post("/v1/models", json=MODEL).status_code == 201
    ingester = make_client("acme", "read", "ingest")
    path = "/v1/models/support/tasks/golden"
    assert ingester.put(path, json={"guarded": True}).status_code == 403
    assert ingester.put(path).json()["guarded"] is False
    assert client.put(path, json={"guarded": True}).json()["guarded"] is True
    assert ingester.put(path, json={"metadata": {"a": 1}}).json()["guarded"] is True
    acts = [
        entry for entry in client.get("/v1/audit").json()["data"] if entry["action"] == "task.guard_changed"
    ]
    assert [entry["data"]["guarded"] for entry in acts] == [True]
