"""Webhooks over HTTP: made, changed, rotated, deleted; who may, and what is never shown."""

import base64
import logging
import threading

import pytest

from service.config import get_settings
from service.db import session_scope
from service.webhooks import addresses, commands
from service.webhooks.sealing import open_sealed, seal
from tests.scenes import make_client
from tests.service.webhooks.conftest import Hooks
from tests.service.webhooks.receiver import answering


def secrets_of(hooks: Hooks) -> list[str]:
    rows = hooks.sql("SELECT webhook_id, sealed FROM webhook_secrets ORDER BY seq")
    return [open_sealed(bytes(row.sealed), owner=row.webhook_id) or "" for row in rows]


def test_a_webhook_is_made_listed_read_changed_and_deleted(hooks: Hooks) -> None:
    made = hooks.create(events=["update.promoted", "update.promoted", "update.held"], description="CI")
    assert made["secret"].startswith("whsec_")
    assert len(base64.b64decode(made["secret"][6:])) == 32
    assert made["events"] == ["update.held", "update.promoted"]
    shown = {name: value for name, value in made.items() if name != "secret"}
    assert hooks.world.get("/webhooks")["data"] == [shown]
    changed = hooks.change(made, events=None, description=None)
    assert changed == {**shown, "events": None, "description": None} == hooks.read(made)
    client = hooks.world.client
    assert client.delete(f"/v1/webhooks/{made['id']}").status_code == 204
    assert hooks.world.problem(client.get(f"/v1/webhooks/{made['id']}")) == (404, "webhook_not_found")
    assert secrets_of(hooks) == []


def test_managing_needs_the_scope_admin_and_looking_the_scope_read(hooks: Hooks) -> None:
    hook = hooks.create()
    reader = make_client("acme", "read")
    where = f"/v1/webhooks/{hook['id']}"
    assert [reader.get(path).status_code for path in ("/v1/webhooks", where, f"{where}/deliveries")] == [
        200
    ] * 3
    answers = [
        reader.post("/v1/webhooks", json={"url": hooks.receiver.url}), reader.patch(where, json={}),
        reader.post(f"{where}/rotate"), reader.post(f"{where}/test"), reader.delete(where),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [403] * 5


def test_a_repeated_request_makes_one_webhook_and_does_not_show_its_secret_again(hooks: Hooks) -> None:
    body, key = {"url": hooks.receiver.url}, {"Idempotency-Key": "once"}
    first, second = (hooks.world.client.post("/v1/webhooks", json=body, headers=key) for _ in range(2))
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.json() == {**first.json(), "secret": None}
    assert len(hooks.world.get("/webhooks")["data"]) == 1


def test_a_repeated_rotation_rotates_once(hooks: Hooks) -> None:
    hook, key = hooks.create(), {"Idempotency-Key": "once"}
    where = f"/v1/webhooks/{hook['id']}/rotate"
    first, second = (hooks.world.client.post(where, headers=key) for _ in range(2))
    assert second.json() == {**first.json(), "secret": None}
    assert secrets_of(hooks) == [hook["secret"], first.json()["secret"]]


def test_the_path_of_an_address_is_shown_to_admins_alone(hooks: Hooks) -> None:
    hook = hooks.create()
    reader = make_client("acme", "read")
    scheme, _, host = hooks.receiver.url.split("/")[:3]
    shown = f"{scheme}//{host}/…"
    assert hooks.read(hook)["url"] == hooks.receiver.url != shown
    assert reader.get(f"/v1/webhooks/{hook['id']}").json()["url"] == shown
    assert [row["url"] for row in reader.get("/v1/webhooks").json()["data"]] == [shown]


def test_a_tenant_has_no_more_webhooks_than_the_limit(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = get_settings().model_copy(update={"max_webhooks_per_tenant": 2})
    monkeypatch.setattr(commands, "get_settings", lambda: settings)
    hooks.create()
    hooks.create()
    third = hooks.world.client.post("/v1/webhooks", json={"url": hooks.receiver.url})
    assert hooks.world.problem(third) == (429, "too_many_webhooks")


def test_the_role_of_the_api_cannot_read_a_secret(hooks: Hooks) -> None:
    hooks.create()
    for role, allowed in (("app", False), ("worker", True)):
        with session_scope(tenant="acme", role=role) as session:  # type: ignore[arg-type]  # both are roles
            granted = session.connection().exec_driver_sql(
                "SELECT has_column_privilege('webhook_secrets', 'sealed', 'SELECT')"
            )
            assert granted.scalar() is allowed


def test_a_secret_is_stored_sealed_and_for_its_own_webhook_alone(hooks: Hooks) -> None:
    hook = hooks.create()
    (row,) = hooks.sql("SELECT to_jsonb(webhook_secrets)::text AS stored, sealed FROM webhook_secrets")
    assert base64.b64decode(hook["secret"][6:]).hex() not in row.stored
    assert hook["secret"].encode() not in bytes(row.sealed)
    assert open_sealed(bytes(row.sealed), owner=hook["id"]) == hook["secret"]
    assert open_sealed(bytes(row.sealed), owner="whk_another") is None
    assert seal("same", owner="x") != seal("same", owner="x")


def test_no_secret_and_no_address_is_logged_audited_or_shown(
    hooks: Hooks, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    hook = hooks.create()
    rotated = hooks.post(hook, "rotate")
    hooks.receiver.react = answering(500)
    hooks.tested(hook)
    hooks.receiver.react = answering(410)
    hooks.tested(hook)
    audit = hooks.world.client.get("/v1/audit").text
    shown = audit + hooks.world.client.get(f"/v1/webhooks/{hook['id']}/deliveries").text
    shown += hooks.world.client.get("/v1/webhooks").text
    captured = capfd.readouterr()
    logged = caplog.text + captured.out + captured.err
    for secret in (hook["secret"], rotated["secret"]):
        assert secret[6:] not in shown + logged
    assert "of=palimpsest" not in audit + logged, "paths and queries of webhooks' addresses may be secrets"
    actions = [entry["action"] for entry in hooks.world.get("/audit")["data"]]
    assert actions[:3] == ["webhook.disabled", "webhook.rotated", "webhook.created"]
    assert hooks.world.get("/audit")["data"][0]["actor"] == "webhooks"


def test_a_webhook_that_is_switched_off_can_be_neither_tested_nor_replayed(hooks: Hooks) -> None:
    hook = hooks.create()
    delivery = hooks.tested(hook)
    hooks.change(hook, enabled=False)
    for path in ("test", f"deliveries/{delivery['id']}/replay"):
        answer = hooks.world.client.post(f"/v1/webhooks/{hook['id']}/{path}")
        assert hooks.world.problem(answer) == (409, "webhook_disabled")


def test_tests_are_refused_while_many_deliveries_are_pending(hooks: Hooks) -> None:
    hook = hooks.create()
    for _ in range(commands.MOST_PENDING_FOR_A_TEST):
        hooks.post(hook, "test")
    answer = hooks.world.client.post(f"/v1/webhooks/{hook['id']}/test")
    assert hooks.world.problem(answer) == (429, "too_many_deliveries")


def test_unknown_events_fields_and_empty_lists_are_refused(hooks: Hooks) -> None:
    for wrong in ({"events": ["update.lost"]}, {"events": []}, {"secret": "mine"}, {"url": ""}):
        body = {"url": hooks.receiver.url, **wrong}
        answer = hooks.world.client.post("/v1/webhooks", json=body)
        assert hooks.world.problem(answer) == (422, "validation_error"), wrong


def test_a_webhook_made_while_http_was_allowed_can_be_managed_and_is_given_up_when_it_no_longer_is(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook, gone = hooks.create(), hooks.create()
    monkeypatch.setattr(addresses, "get_settings", get_settings)
    delivery = hooks.tested(gone)
    assert delivery["attempts"] == 1
    assert "https://" in delivery["log"][0]["error"]
    assert not hooks.change(hook, enabled=False)["enabled"]
    hooks.post(hook, "rotate")
    assert hooks.world.client.delete(f"/v1/webhooks/{hook['id']}").status_code == 204


def test_a_name_that_takes_for_ever_to_resolve_is_refused_and_holds_nobody_up(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(addresses, "RESOLVING_SECONDS", 0.2)
    monkeypatch.setattr(addresses, "resolve", lambda *_: over.wait(60))
    answer = hooks.world.client.post("/v1/webhooks", json={"url": "https://slow.example"})
    over.set()
    assert hooks.world.problem(answer) == (422, "webhook_url_refused")
    assert "within 0.2 s" in answer.json()["detail"]
