"""Delivering: each message is tried again, given up, replayed, taken over; at least once, whatever dies meanwhile."""

import os
import subprocess
import sys
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.db import session_scope
from service.webhooks import leases, sealing, sending
from service.webhooks.schedule import MAX_TRIES, PAUSES_SECONDS
from service.webhooks.sending import Answer
from tests.scenes import World, make_client
from tests.service.webhooks.conftest import Hooks
from tests.service.webhooks.receiver import answering
from workers import housekeeping
from workers.webhooks import deliver, deliver_due, deliver_forever

ROOT = Path(__file__).parents[3]


def test_a_failed_delivery_is_tried_again_later_and_later_and_at_last_given_up(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.receiver.react = answering(503)
    delivery = hooks.tested(hook)
    for tries, pause in enumerate(PAUSES_SECONDS, start=1):
        assert (delivery["state"], delivery["attempts"], delivery["status_code"]) == ("pending", tries, 503)
        assert delivery["error"] == "answered 503"
        latest = datetime.fromisoformat(delivery["log"][-1]["at"])
        waits = (datetime.fromisoformat(delivery["next_attempt_at"]) - latest).total_seconds()
        assert 0.79 * pause <= waits <= 1.21 * pause
        assert deliver_due() == 0, "not before it is due"
        hooks.make_due()
        assert deliver_due() == 1
        (delivery,) = hooks.deliveries(hook)
    assert (delivery["state"], delivery["attempts"]) == ("failed", MAX_TRIES)
    assert delivery["next_attempt_at"] is None
    assert len({(one.id, one.body) for one in hooks.receiver.received}) == 1, "the same message every time"
    assert len(delivery["log"]) == MAX_TRIES
    assert hooks.deliveries(hook, "?state=failed") == [delivery]
    assert hooks.deliveries(hook, "?state=pending") == []
    assert hooks.read(hook)["enabled"], "one delivery that failed is no reason to switch off"


def test_a_receiver_that_recovers_gets_the_message_and_the_webhook_fails_no_more(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.receiver.react = answering(500)
    hooks.tested(hook)
    assert hooks.read(hook)["failing_since"] is not None
    hooks.receiver.react = answering(204)
    hooks.make_due()
    deliver_due()
    (delivery,) = hooks.deliveries(hook)
    assert (delivery["state"], delivery["attempts"], delivery["status_code"]) == ("delivered", 2, 204)
    assert delivery["error"] is None
    assert hooks.read(hook)["failing_since"] is None


def test_a_receiver_may_ask_for_patience(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.receiver.react = answering(429, Retry_After="300")
    delivery = hooks.tested(hook)
    latest = datetime.fromisoformat(delivery["log"][-1]["at"])
    assert (datetime.fromisoformat(delivery["next_attempt_at"]) - latest).total_seconds() == 300


def test_a_replay_sends_the_same_message_again_whatever_came_of_it(hooks: Hooks) -> None:
    hook = hooks.create()
    delivery = hooks.tested(hook)
    key = {"Idempotency-Key": "replay"}
    where = f"/v1/webhooks/{hook['id']}/deliveries/{delivery['id']}/replay"
    for _ in range(2):  # repeated, and yet replayed once
        replayed = hooks.world.ok(hooks.world.client.post(where, headers=key))
    assert (replayed["state"], replayed["finished_at"]) == ("pending", None)
    assert deliver_due() == 1
    first, again = hooks.receiver.received
    assert (first.id, first.body) == (again.id, again.body)
    assert again.verified(hook["secret"])
    (delivery,) = hooks.deliveries(hook)
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 2)
    hooks.sql("UPDATE webhook_deliveries SET state = 'failed', tries = 8")
    hooks.receiver.react = answering(500)
    hooks.post(hook, "deliveries", delivery["id"], "replay")
    deliver_due()
    assert hooks.deliveries(hook)[0]["state"] == "pending", "it has all of its tries again"


def test_a_receiver_that_is_gone_switches_its_webhook_off_at_once(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.post(hook, "test")
    hooks.post(hook, "test")
    hooks.receiver.react = answering(410)
    deliver_due()
    gone = hooks.read(hook)
    assert (gone["enabled"], gone["disabled_reason"]) == (False, "its receiver answered 410 Gone")
    assert len(hooks.receiver.received) == 1
    waiting, sent = hooks.deliveries(hook)
    assert (sent["state"], sent["status_code"]) == ("failed", 410)
    assert (waiting["state"], waiting["attempts"]) == ("failed", 0)
    assert "switched off" in waiting["error"]
    back = hooks.change(hook, enabled=True)
    assert (back["disabled_reason"], back["failing_since"]) == (None, None)


def test_a_webhook_to_which_nothing_was_delivered_for_days_is_switched_off_and_audited(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.receiver.react = answering(500)
    hooks.tested(hook)
    hooks.sql("UPDATE webhooks SET failing_since = now() - interval '6 days'")
    hooks.make_due()
    deliver_due()
    assert hooks.read(hook)["enabled"], "tries are left"
    hooks.sql("UPDATE webhook_deliveries SET tries = 7")
    hooks.make_due()
    deliver_due()
    assert hooks.read(hook)["disabled_reason"].startswith("nothing could be delivered since 20")
    entry = hooks.world.get("/audit?action=webhook.disabled")["data"][0]
    assert (entry["target"], entry["data"]["host"]) == (hook["id"], "127.0.0.1")


def test_a_new_address_does_not_answer_for_the_days_of_the_old_one(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.receiver.react = answering(500)
    hooks.tested(hook)
    hooks.sql("UPDATE webhooks SET failing_since = now() - interval '6 days'")
    hooks.sql("UPDATE webhook_deliveries SET tries = 7")
    assert hooks.change(hook, url=hook["url"], description="the same")["failing_since"] is not None
    assert hooks.change(hook, url=f"{hook['url']}?mended")["failing_since"] is None
    hooks.make_due()
    deliver_due()
    assert hooks.deliveries(hook)[0]["state"] == "failed", "it was the last try"
    assert hooks.read(hook)["enabled"]


@pytest.mark.slow  # a process to start
def test_a_sender_killed_before_it_could_record_leaves_the_message_to_the_next_under_the_same_id(
    hooks: Hooks, tmp_path: Path
) -> None:
    hook = hooks.create()
    made = hooks.post(hook, "test")
    environment = {
        **os.environ, "PALIMPSEST_FAILPOINTS": "webhook_sent=kill", "PALIMPSEST_WEBHOOK_ALLOW_PRIVATE": "1",
        "PALIMPSEST_WEBHOOK_ALLOW_HTTP": "1",
    }  # fmt: skip
    with (tmp_path / "sweeper.log").open("wb") as log:
        sender = subprocess.run(
            [sys.executable, "-m", "workers.housekeeping"], env=environment, cwd=ROOT, stderr=log, timeout=120
        )
    assert sender.returncode == -9, (tmp_path / "sweeper.log").read_text()
    assert len(hooks.receiver.received) == 1
    (delivery,) = hooks.deliveries(hook)
    assert (delivery["state"], delivery["attempts"]) == ("pending", 0)
    assert deliver_due() == 0, "the dead sender's lease lasts"
    hooks.make_due()
    assert deliver_due() == 1
    first, again = hooks.receiver.received
    assert first.id == again.id == made["message_id"]
    assert hooks.deliveries(hook)[0]["state"] == "delivered"


def test_a_sender_that_lost_its_lease_records_nothing(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.post(hook, "test")
    (frozen,) = hooks.claim()
    hooks.make_due()
    (heir,) = hooks.claim()
    assert heir.fence == frozen.fence + 1
    assert deliver(heir) == "delivered"
    with session_scope(tenant="acme", role="worker") as session:
        assert leases.record(session, claim=frozen, answer=Answer(None, "late"), seconds=1) is None
        assert leases.prepare(session, claim=frozen) is None
    (delivery,) = hooks.deliveries(hook)
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 1)


def test_a_webhook_is_called_once_at_a_time_in_the_order_of_events_and_a_tenant_not_without_bound(
    hooks: Hooks,
) -> None:
    many = [hooks.create() for _ in range(leases.MOST_OF_A_TENANT + 2)]
    order = [hooks.post(hook, "test")["id"] for _ in range(2) for hook in many]
    other = World(make_client("globex"))
    theirs = other.ok(other.client.post("/v1/webhooks", json={"url": hooks.receiver.url}))
    last = other.ok(other.client.post(f"/v1/webhooks/{theirs['id']}/test"))
    claimed = hooks.claim(limit=100)
    mine = [claim.delivery_id for claim in claimed if claim.tenant == "acme"]
    assert sorted(mine) == sorted(order[: leases.MOST_OF_A_TENANT])
    assert [claim.delivery_id for claim in claimed if claim.tenant == "globex"] == [last["id"]]
    assert hooks.claim(limit=100) == []
    hooks.make_due()
    assert deliver_due() == len(order) + 1
    by_hook = [delivery["id"] for delivery in hooks.deliveries(many[0])[::-1]]
    ids = [hooks.world.get(f"/webhooks/{many[0]['id']}/deliveries/{one}")["message_id"] for one in by_hook]
    assert [one.id for one in hooks.receiver.received if one.id in ids] == ids


def test_a_webhook_to_which_something_is_under_way_gets_nothing_else_meanwhile(hooks: Hooks) -> None:
    hook = hooks.create()
    first, second = hooks.post(hook, "test"), hooks.post(hook, "test")
    (claim,) = hooks.claim()
    assert claim.delivery_id == first["id"]
    hooks.post(hook, "deliveries", first["id"], "replay")  # which is due after the second now
    assert hooks.claim() == []
    deliver(claim)
    assert [after.delivery_id for after in hooks.claim()] == [second["id"]]


def test_tenants_take_turns(hooks: Hooks) -> None:
    for hook in [hooks.create() for _ in range(3)]:
        hooks.post(hook, "test")
    other = World(make_client("globex"))
    theirs = other.ok(other.client.post("/v1/webhooks", json={"url": hooks.receiver.url}))
    other.ok(other.client.post(f"/v1/webhooks/{theirs['id']}/test"))
    assert {claim.tenant for claim in hooks.claim(limit=2)} == {"acme", "globex"}


def test_what_was_claimed_before_its_webhook_was_switched_off_is_given_up_unsent(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.post(hook, "test")
    (claim,) = hooks.claim()
    hooks.change(hook, enabled=False)
    assert deliver(claim) is None
    assert hooks.receiver.received == []
    assert hooks.deliveries(hook)[0]["state"] == "failed"


def test_a_deleted_webhook_is_not_called(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.post(hook, "test")
    (claim,) = hooks.claim()
    assert hooks.world.client.delete(f"/v1/webhooks/{hook['id']}").is_success
    assert deliver(claim) is None
    assert hooks.receiver.received == []


def test_an_error_of_our_own_counts_as_an_attempt(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_certificates", lambda: 1 / 0)
    delivery = hooks.tested(hooks.create())
    assert (delivery["state"], delivery["attempts"]) == ("pending", 1)
    assert "internal error" in delivery["error"]


def test_nothing_is_sent_unsigned_where_the_pepper_has_changed(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = hooks.create()
    monkeypatch.setattr(sealing, "_pepper", lambda: b"another")
    delivery = hooks.tested(hook)
    assert hooks.receiver.received == []
    assert "another key pepper; rotate it" in delivery["error"]
    rotated = hooks.post(hook, "rotate")
    hooks.tested(hook)
    assert hooks.receiver.latest.verified(rotated["secret"])


def test_delivery_begins_within_moments_of_the_commit_and_slow_receivers_hold_nobody_up(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "READ_SECONDS", 60.0)  # the slow one is waited for while the others are told
    monkeypatch.setattr(sending, "TOTAL_SECONDS", 60.0)
    slow, quick = hooks.create(), hooks.create()
    over, stopping = threading.Event(), threading.Event()
    slow_id = hooks.post(slow, "test")["message_id"]

    def react(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers["webhook-id"] == slow_id:
            over.wait(60)
        answering(200)(handler)

    hooks.receiver.react = react
    sender = threading.Thread(target=deliver_forever, args=(stopping,), daemon=True)
    sender.start()
    try:
        wait_for(lambda: any(one.id == slow_id for one in hooks.receiver.received))
        began = time.monotonic()
        made = hooks.post(quick, "test")
        wait_for(lambda: any(one.id == made["message_id"] for one in hooks.receiver.received))
        assert time.monotonic() - began < 10  # a second, on a machine that has nothing else to do
    finally:
        stopping.set()
        over.set()
        sender.join(60)
    assert not sender.is_alive()
    assert hooks.deliveries(slow)[0]["state"] == "delivered", "what is under way is finished before the end"


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_database_that_fails_is_waited_out(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = leases.claim_due

    def failing_once(session: Any, *, limit: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            session.execute(text("SELECT 1 / 0"))
        return real(session, limit=limit)

    monkeypatch.setattr(leases, "claim_due", failing_once)
    hooks.post(hooks.create(), "test")
    stopping = threading.Event()
    sender = threading.Thread(target=deliver_forever, args=(stopping,), daemon=True)
    sender.start()
    try:
        wait_for(lambda: hooks.receiver.received)
    finally:
        stopping.set()
        sender.join(60)


def test_finished_deliveries_are_kept_for_a_while_and_pending_ones_until_they_are_finished(
    hooks: Hooks,
) -> None:
    hook = hooks.create()
    hooks.tested(hook)
    hooks.post(hook, "test")
    assert housekeeping.sweep_deliveries() == 0
    hooks.sql(
        "UPDATE webhook_deliveries SET created_at = now() - interval '40 days',"
        " finished_at = CASE state WHEN 'delivered' THEN now() - interval '31 days' END"
    )
    assert housekeeping.sweep_deliveries() == 1
    assert [delivery["state"] for delivery in hooks.deliveries(hook)] == ["pending"]
