"""Webhooks from the command line."""

from collections.abc import Iterator

import pytest

from service.config import get_settings
from service.webhooks import addresses
from tests.service.cli.conftest import Palimpsest
from tests.service.webhooks.receiver import Receiver, answering, receiving
from workers.webhooks import deliver_due


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    settings = get_settings().model_copy(update={"webhook_allow_private": True, "webhook_allow_http": True})
    monkeypatch.setattr(addresses, "get_settings", lambda: settings)
    with receiving() as made:
        yield made


def test_a_webhook_is_made_tested_rotated_changed_and_deleted(
    palimpsest: Palimpsest, receiver: Receiver
) -> None:
    made = palimpsest("webhook", "create", receiver.url, "--event", "update.held", "--json").json
    assert made["events"] == ["update.held"]
    assert palimpsest("webhook", "list", "--json").json["data"][0]["id"] == made["id"]
    assert "update.held" in palimpsest("webhook", "list").out
    assert "is on its way" in palimpsest("webhook", "test", made["id"]).out
    deliver_due()
    assert receiver.latest.verified(made["secret"])["type"] == "webhook.test"

    rotated = palimpsest("webhook", "rotate", made["id"], "--overlap", "12h", "--json").json
    assert rotated["secret"] != made["secret"]
    assert rotated["previous_secret_signs_until"] is not None
    leaked = palimpsest("webhook", "rotate", made["id"], "--overlap", "0")
    assert "whsec_" in leaked.out
    assert palimpsest("webhook", "show", made["id"], "--json").json["previous_secret_signs_until"] is None

    assert palimpsest("webhook", "change", made["id"]).code == 2
    changed = palimpsest("webhook", "change", made["id"], "--all-events", "--disable", "--json").json
    assert (changed["events"], changed["enabled"]) == (None, False)
    assert "all" in palimpsest("webhook", "show", made["id"]).out
    assert palimpsest("webhook", "delete", made["id"], given="n\n").code == 1
    assert "is deleted" in palimpsest("webhook", "delete", made["id"], "--yes").out
    assert palimpsest("webhook", "list", "--json").json["data"] == []


def test_the_log_shows_what_went_wrong_and_a_replay_mends_it(
    palimpsest: Palimpsest, receiver: Receiver
) -> None:
    hook = palimpsest("webhook", "create", receiver.url, "--json").json
    receiver.react = answering(500)
    delivery = palimpsest("webhook", "test", hook["id"], "--json").json
    deliver_due()
    shown = palimpsest("webhook", "deliveries", hook["id"]).out
    assert "answered 500" in shown
    assert delivery["id"] in shown
    receiver.react = answering(200)
    assert "is on its way" in palimpsest("webhook", "replay", hook["id"], delivery["id"]).out
    deliver_due()
    done = palimpsest("webhook", "deliveries", hook["id"], "--only", "delivered", "--json").json["data"]
    assert [one["attempts"] for one in done] == [2]
    assert palimpsest("webhook", "deliveries", hook["id"], "--only", "lost").code == 1


def test_a_refused_address_is_told_with_its_reason(palimpsest: Palimpsest) -> None:
    refused = palimpsest("webhook", "create", "https://127.0.0.1/")
    assert refused.code == 1
    assert "private or loopback" in refused.err
    assert "webhook_url_refused" in refused.err
