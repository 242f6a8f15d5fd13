"""What webhooks are told of: each change once, from the transaction that makes it, and nothing that did not happen."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from service.db import EVERY_TENANT, engine_for, session_scope
from service.models import UpdateState, WebhookDelivery
from service.updates.leases import begin_evaluating, fail_attempt, give_back, sweep_expired
from service.updates.states import change_state
from tests.scenes import World, make_client
from tests.service.storage.scenes import rows, version
from tests.service.webhooks.conftest import Hooks
from workers.webhooks import deliver_due

VERDICT = {"decision": "pass", "reasons": [{"task": "one", "detail": "a text of an example"}]}


@pytest.fixture
def told(hooks: Hooks) -> dict[str, Any]:
    """A model with a task, and a webhook that is told of everything."""
    hooks.world.model()
    hooks.world.ok(hooks.world.client.put("/v1/models/triage/tasks/one"))
    hooks.world.examples("one", rows("one", 4) + rows("one", 2, split="eval"))
    return hooks.create()


def evaluating(world: World) -> Any:
    """An update that a worker evaluates; returns the claim."""
    world.request("one")
    claim = world.claim()
    with session_scope(tenant="acme", role="worker") as session:
        assert begin_evaluating(session, claim=claim)
    return claim


def conclude(claim: Any, to: UpdateState, **values: Any) -> None:
    """Ends the evaluation as the pipeline does."""
    with session_scope(tenant="acme", role="worker") as session:
        assert change_state(
            session, update_id=claim.update_id, to=to, fence=claim.fence, verdict=VERDICT, version=1,
            compared_with=0, decided_by=None if to == UpdateState.AWAITING_APPROVAL else "gate", **values,
        )  # fmt: skip


def messages(hooks: Hooks, hook: dict[str, Any]) -> list[dict[str, Any]]:
    """What the receiver has been sent, verified, in the order of its arrival."""
    deliver_due()
    return [received.verified(hook["secret"]) for received in hooks.receiver.received]


@pytest.mark.parametrize(
    ("state", "type_"),
    [
        (UpdateState.PROMOTED, "update.promoted"), (UpdateState.REJECTED, "update.rejected"),
        (UpdateState.AWAITING_APPROVAL, "update.held"),
    ],
)  # fmt: skip
def test_a_verdict_is_told_with_its_decision_and_no_texts(
    hooks: Hooks, told: dict[str, Any], state: UpdateState, type_: str
) -> None:
    claim = evaluating(hooks.world)
    conclude(claim, state)
    (message,) = messages(hooks, told)
    model = hooks.world.get("/models/triage")
    assert message["type"] == type_
    assert message["timestamp"].endswith("+00:00")
    assert message["data"] == {
        "model": "triage", "model_id": model["id"], "update": claim.update_id, "version": 1, "compared_with": 0,
        "verdict": "pass", "decided_by": None if state == UpdateState.AWAITING_APPROVAL else "gate", "error": None,
    }  # fmt: skip
    assert b"a text of an example" not in hooks.receiver.latest.body


def test_an_update_that_fails_is_told_with_its_error_code(hooks: Hooks, told: dict[str, Any]) -> None:
    claim = evaluating(hooks.world)
    with session_scope(tenant="acme", role="worker") as session:
        fail_attempt(session, claim=claim, code="diverged", message="at row 7: secret text", final=True)
    (message,) = messages(hooks, told)
    assert (message["type"], message["data"]["error"]) == ("update.failed", "diverged")
    assert b"secret text" not in hooks.receiver.latest.body


def test_an_attempt_that_will_be_made_again_is_not_told(hooks: Hooks, told: dict[str, Any]) -> None:
    claim = evaluating(hooks.world)
    with session_scope(tenant="acme", role="worker") as session:
        fail_attempt(session, claim=claim, code="trainer_died", message="killed by SIGKILL")
    assert messages(hooks, told) == []


def test_a_candidate_that_goes_back_to_waiting_without_a_new_verdict_is_not_told_again(
    hooks: Hooks, told: dict[str, Any]
) -> None:
    conclude(evaluating(hooks.world), UpdateState.AWAITING_APPROVAL)
    hooks.sql("UPDATE updates SET rescore_requested_at = now()")
    again = hooks.world.claim()
    assert again.rescore
    with session_scope(tenant="acme", role="worker") as session:
        assert give_back(session, claim=again, reason="the worker is stopping")
    assert [message["type"] for message in messages(hooks, told)] == ["update.held"]
    conclude(hooks.world.claim(), UpdateState.AWAITING_APPROVAL)
    assert [message["type"] for message in messages(hooks, told)] == ["update.held"] * 2


def test_a_cancelled_update_is_told_whoever_carries_the_cancel_out(
    hooks: Hooks, told: dict[str, Any]
) -> None:
    by_hand = hooks.world.request("one")
    hooks.world.client.post(f"/v1/updates/{by_hand['id']}/cancel")
    swept = hooks.world.request("one")
    hooks.world.claim()
    hooks.world.client.post(f"/v1/updates/{swept['id']}/cancel")
    hooks.sql("UPDATE updates SET lease_expires_at = now() - interval '1 second' WHERE state = 'training'")
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        assert sweep_expired(session) == [swept["id"]]
    got = [(message["type"], message["data"]["update"]) for message in messages(hooks, told)]
    assert got == [("update.cancelled", by_hand["id"]), ("update.cancelled", swept["id"])]


def test_a_champion_that_people_move_is_told_with_where_the_next_rollback_goes(
    hooks: Hooks, told: dict[str, Any], tmp_path: Path
) -> None:
    version(tmp_path, number=1, lineage=[0, 1], learns="one")
    version(tmp_path, number=2, lineage=[0, 1, 2], learns="one", champion=False)
    alias = hooks.world.client.put("/v1/models/triage/aliases/champion", json={"version": 2})
    assert alias.is_success
    hooks.world.ok(hooks.world.client.put("/v1/models/triage/aliases/canary", json={"version": 2}))
    hooks.world.rollback()
    assigned, back = messages(hooks, told)
    assert (assigned["type"], back["type"]) == ("champion.assigned", "champion.rolled_back")
    shown = [
        {name: message["data"][name] for name in ("model", "champion", "before", "previous", "by")}
        for message in (assigned, back)
    ]
    who = {"model": "triage", "by": "key:acme-test"}
    assert shown == [
        {**who, "champion": 2, "before": 1, "previous": 1}, {**who, "champion": 1, "before": 2, "previous": 0},
    ]  # fmt: skip


def test_a_webhook_is_told_only_of_what_it_asked_for_while_it_is_on_and_of_its_own_tenant(
    hooks: Hooks, told: dict[str, Any]
) -> None:
    other = World(make_client("globex"))
    other.ok(other.client.post("/v1/webhooks", json={"url": hooks.receiver.url}))
    picky = hooks.create(events=["update.promoted"])
    off = hooks.create()
    hooks.change(off, enabled=False)
    update = hooks.world.request("one")
    hooks.world.client.post(f"/v1/updates/{update['id']}/cancel")
    assert [delivery["type"] for delivery in hooks.deliveries(told)] == ["update.cancelled"]
    assert hooks.deliveries(picky) == hooks.deliveries(off) == []
    assert len(messages(hooks, told)) == 1


def test_webhooks_that_are_told_of_the_same_change_get_the_same_message_id(
    hooks: Hooks, told: dict[str, Any]
) -> None:
    second = hooks.create()
    update = hooks.world.request("one")
    hooks.world.client.post(f"/v1/updates/{update['id']}/cancel")
    (mine,), (theirs,) = hooks.deliveries(told), hooks.deliveries(second)
    assert mine["message_id"] == theirs["message_id"]
    assert mine["id"] != theirs["id"]


def test_what_is_rolled_back_is_never_told(hooks: Hooks, told: dict[str, Any]) -> None:
    claim = evaluating(hooks.world)
    with session_scope(tenant="acme", role="worker") as session:
        assert change_state(session, update_id=claim.update_id, to=UpdateState.REJECTED, fence=claim.fence)
        assert session.query(WebhookDelivery).count() == 1
        session.rollback()
    assert messages(hooks, told) == []
    assert hooks.sql("SELECT FROM webhook_deliveries") == []


@contextmanager
def statements(database: str) -> Iterator[list[str]]:
    """Every statement that the block runs."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    engine = engine_for(database)
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_a_tenant_without_webhooks_pays_one_statement_for_a_change(world: World, database: str) -> None:
    world.model()
    world.ok(world.client.put("/v1/models/triage/tasks/one"))
    world.examples("one", rows("one", 4) + rows("one", 2, split="eval"))
    claim = evaluating(world)
    with statements(database) as seen:
        conclude(claim, UpdateState.REJECTED)
    assert sum("webhook" in statement for statement in seen) == 1


def test_a_webhook_that_is_deleted_at_the_same_moment_never_fails_the_change(
    hooks: Hooks, told: dict[str, Any], database: str
) -> None:
    claim = evaluating(hooks.world)
    with engine_for(database).begin() as connection:
        connection.exec_driver_sql("SET LOCAL ROLE palimpsest_owner")
        connection.exec_driver_sql("DELETE FROM webhooks")
        change = threading.Thread(target=conclude, args=(claim, UpdateState.REJECTED), daemon=True)
        change.start()
        change.join(0.5)
        assert change.is_alive(), "it waits for what becomes of the webhook"
    change.join(60)
    assert hooks.world.update(claim.update_id)["status"] == "rejected"
    assert hooks.sql("SELECT FROM webhook_deliveries") == []


def test_a_purge_takes_what_webhooks_were_told_of_the_model(hooks: Hooks, told: dict[str, Any]) -> None:
    update = hooks.world.request("one")
    hooks.world.client.post(f"/v1/updates/{update['id']}/cancel")
    hooks.post(told, "test")
    assert hooks.world.client.delete("/v1/models/triage").is_success
    hooks.world.ok(hooks.world.client.post("/v1/models/triage/purge"))
    assert [delivery["type"] for delivery in hooks.deliveries(told)] == ["webhook.test"]
