"""Requests for updates: what is accepted, what is refused, and with which words."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from service.config import get_settings
from service.db import engine_for
from service.updates import commands
from tests.scenes import World


@pytest.fixture
def ready(world: World) -> World:
    """A model with one task that could be learnt."""
    world.model()
    world.task("one")
    return world


def post(world: World, **body: object) -> tuple[int, str]:
    """Posts an update that should be refused; returns status and code."""
    return world.problem(world.client.post("/v1/models/triage/updates", json={"tasks": ["one"], **body}))


def test_an_accepted_update_is_queued_with_its_cut_and_location(ready: World) -> None:
    answer = ready.client.post("/v1/models/triage/updates", json={"tasks": ["one"]})
    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/updates/{body['id']}"
    assert (body["status"], body["data_cut"], body["attempt"], body["parent"]) == ("queued", 1, 1, "champion")
    assert body["strategy"]["name"] == "replay"
    assert "fraction" in body["strategy"]["parameters"]
    assert body["training"]["epochs"] >= 1


def test_a_tenant_whose_queue_is_full_is_told_to_wait(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    small = get_settings().model_copy(update={"max_queued_updates_per_tenant": 1})
    monkeypatch.setattr(commands, "get_settings", lambda: small)
    queued = ready.request("one")
    answer = ready.client.post("/v1/models/triage/updates", json={"tasks": ["one"]})
    assert ready.problem(answer) == (429, "too_many_queued_updates")
    assert answer.headers["Retry-After"] == "30"
    ready.ok(ready.client.post(f"/v1/updates/{queued['id']}/cancel"))
    ready.request("one")


def test_what_does_not_exist_is_refused_by_name(ready: World) -> None:
    assert ready.problem(ready.client.post("/v1/models/nope/updates", json={"tasks": ["one"]})) == (
        404,
        "model_not_found",
    )
    assert post(ready, tasks=["nope"]) == (404, "task_not_found")
    assert post(ready, strategy={"name": "magic"}) == (422, "unknown_strategy")
    assert post(ready, parent=7) == (422, "parent_not_found")
    assert ready.problem(ready.client.get("/v1/updates/upd_nope")) == (404, "update_not_found")


def test_a_strategy_that_adds_adapters_up_refuses_those_that_cannot_be(world: World) -> None:
    world.model(adapter={"use_dora": True})
    world.task("one")
    answer = world.client.post(
        "/v1/models/triage/updates", json={"tasks": ["one"], "strategy": {"name": "olora"}}
    )
    assert world.problem(answer) == (422, "strategy_not_applicable")
    assert "takes the adapter type lora, not dora" in answer.json()["detail"]
    taken = world.client.post(
        "/v1/models/triage/updates", json={"tasks": ["one"], "strategy": {"name": "replay"}}
    )
    assert taken.status_code == 202


def test_strategy_parameters_are_checked_against_the_catalogue(ready: World) -> None:
    answer = ready.client.post(
        "/v1/models/triage/updates",
        json={"tasks": ["one"], "strategy": {"name": "replay", "fraction": 7, "frction": 1}},
    )
    assert ready.problem(answer) == (422, "invalid_strategy_parameters")
    assert len(answer.json()["errors"]) == 2


def test_bad_training_settings_name_the_field(ready: World) -> None:
    answer = ready.client.post(
        "/v1/models/triage/updates", json={"tasks": ["one"], "training": {"learning_rate": -1, "epoch": 3}}
    )
    assert ready.problem(answer) == (422, "validation_error")
    places = {tuple(error["loc"]) for error in answer.json()["errors"]}
    assert places == {("body", "training", "learning_rate"), ("body", "training", "epoch")}


def test_an_empty_task_and_a_task_without_eval_rows_are_refused(ready: World) -> None:
    ready.client.put("/v1/models/triage/tasks/empty")
    assert post(ready, tasks=["empty"]) == (422, "no_train_data")
    ready.client.put("/v1/models/triage/tasks/blind")
    ready.examples("blind", [{"text": "never judged", "label": "x", "split": "train"}])
    answer = ready.client.post("/v1/models/triage/updates", json={"tasks": ["blind"]})
    assert ready.problem(answer) == (422, "no_eval_data")
    assert "eval" in answer.json()["detail"]


def test_small_eval_sets_are_warned_of_at_the_request(ready: World) -> None:
    ready.learn("one")
    ready.task("two", ("random", "socket"))
    update = ready.request("two")
    assert any("task 'one' has 16 eval examples" in warning for warning in update["warnings"])


def test_small_graded_eval_sets_are_warned_of_as_well(ready: World) -> None:
    ready.model("writer", base_model="smollm2-135m", task_type="causal-lm")
    for task, held in (("alone", 1), ("few", 5), ("many", 30)):
        ready.ok(ready.client.put(f"/v1/models/writer/tasks/{task}", json={"guarded": True}))
        rows = [{"text": f"{task} {at}", "split": "eval"} for at in range(held)]
        ready.examples(task, [*rows, {"text": f"{task} to learn", "split": "train"}], model="writer")
    alone, few = ready.request("many", model="writer")["warnings"]
    assert "task 'alone' has 1 eval example; graded scores have bounds from 2 examples on" in alone
    assert "task 'few' has 5 eval examples; with fewer than 30" in few


def test_updates_of_one_model_queue_up_in_order_and_models_run_side_by_side(ready: World) -> None:
    ready.model("other")
    ready.task("one", model="other")
    first, second = ready.request("one"), ready.request("one", relearn=True)
    third = ready.request("one", model="other")
    claims = [ready.claim(), ready.claim(), ready.claim()]
    assert [claim and claim.update_id for claim in claims] == [first["id"], third["id"], None]
    assert ready.update(second["id"])["status"] == "queued"
    assert ready.get("/models/triage")["active_update"] == first["id"]


def test_tenants_take_turns(ready: World, other_client: TestClient) -> None:
    mine = [ready.request("one", relearn=True)["id"] for _ in range(3)]
    other = World(other_client)
    other.model()
    other.task("one")
    theirs = other.request("one")["id"]
    ready.model("second")
    ready.task("one", model="second")
    later = ready.request("one", model="second")["id"]
    assert [ready.claim().update_id for _ in range(3)] == [mine[0], theirs, later]


def test_a_queued_update_is_cancelled_at_once(ready: World) -> None:
    update = ready.request("one")
    cancelled = ready.ok(ready.client.post(f"/v1/updates/{update['id']}/cancel"))
    assert (cancelled["status"], cancelled["decided_by"]) == ("cancelled", "key:acme-test")
    assert ready.claim() is None
    assert ready.problem(ready.client.post(f"/v1/updates/{update['id']}/cancel")) == (409, "update_finished")


def test_an_archived_model_takes_no_updates_and_a_busy_one_is_not_archived(ready: World) -> None:
    update = ready.request("one")
    assert ready.problem(ready.client.delete("/v1/models/triage")) == (409, "model_busy")
    ready.client.post(f"/v1/updates/{update['id']}/cancel")
    assert ready.client.delete("/v1/models/triage").status_code == 204
    assert post(ready) == (409, "model_archived")


def test_ten_identical_requests_with_one_idempotency_key_make_one_update(ready: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def send(_: int) -> int:
        return ready.client.post(
            "/v1/models/triage/updates", json={"tasks": ["one"]}, headers={"Idempotency-Key": "k1"}
        ).status_code

    with ThreadPoolExecutor(10) as pool:
        statuses = set(pool.map(send, range(10)))
    assert statuses <= {202, 409}
    assert send(0) == 202
    assert len(ready.get("/models/triage/updates")["data"]) == 1


def test_a_broker_that_is_away_does_not_stop_a_request(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from service import queue

    # A real attempt to reach an address where nothing listens.
    monkeypatch.setattr(queue, "sender", queue.make_sender("redis://127.0.0.1:9/0"))
    update = ready.request("one")
    assert update["status"] == "queued"
    assert ready.claim().update_id == update["id"]


def test_a_broker_that_hangs_holds_a_request_up_for_a_second(
    ready: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service import queue

    with socket.create_server(("127.0.0.1", 0)) as mute:  # connects, and says nothing ever after
        monkeypatch.setattr(
            queue, "sender", queue.make_sender(f"redis://127.0.0.1:{mute.getsockname()[1]}/0")
        )
        start = time.monotonic()
        assert ready.request("one")["status"] == "queued"
    assert time.monotonic() - start < 4.5


def test_a_label_that_is_judged_but_never_learnt_is_warned_of(ready: World) -> None:
    ready.examples("one", [{"text": "a slip of the pen", "label": "mahth", "split": "eval"}])
    assert any("'mahth'" in warning for warning in ready.request("one")["warnings"])


def test_a_parameter_that_is_no_number_is_refused(ready: World) -> None:
    body = b'{"tasks": ["one"], "strategy": {"name": "ewc", "strength": NaN}}'
    answer = ready.client.post(
        "/v1/models/triage/updates", content=body, headers={"Content-Type": "application/json"}
    )
    assert ready.problem(answer) == (422, "invalid_strategy_parameters")


def test_a_request_costs_a_model_with_many_tasks_no_more_statements(ready: World) -> None:
    counts = []
    for tasks in (range(1), range(1, 4)):
        for number in tasks:
            path = f"/v1/models/triage/tasks/guarded-{number}"
            ready.ok(ready.client.put(path, json={"guarded": True}))
            ready.examples(f"guarded-{number}", [{"text": f"text {number}", "label": "os", "split": "eval"}])
        ready.request("one")  # what is asked once only
        with recorded_statements() as statements:
            update = ready.request("one")
        counts.append((len(statements), len(update["warnings"])))
    assert [warnings for _, warnings in counts] == [1, 4]  # of eval sets that are too small to judge
    assert counts[0][0] == counts[1][0]


@contextmanager
def recorded_statements() -> Iterator[list[str]]:
    """Every statement that the database is sent in the block."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)

    engine = engine_for(get_settings().database_url)
    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)
