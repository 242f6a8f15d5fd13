"""The guide's commands and its receiver, run as printed."""

import re
import shlex
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.models import EventType
from tests.service.cli.conftest import Palimpsest, api_port, nobodys_profiles, palimpsest
from tests.service.webhooks.conftest import Hooks
from tests.service.webhooks.receiver import answering
from workers.webhooks import deliver_due

__all__ = ["api_port", "nobodys_profiles", "palimpsest"]  # fixtures

GUIDE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def receiving_as_printed(secret: str, monkeypatch: pytest.MonkeyPatch) -> tuple[TestClient, dict[str, Any]]:
    """The guide's receiver with the secret, and its names."""
    monkeypatch.setenv("PALIMPSEST_WEBHOOK_SECRET", secret)
    (code,) = blocks("python")
    names: dict[str, Any] = {}
    exec(code, names)
    return TestClient(names["app"]), names


def test_the_receiver_of_the_guide_takes_messages_once_and_refuses_what_is_not_signed(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = hooks.create()
    printed, names = receiving_as_printed(hook["secret"], monkeypatch)

    def hand_on(handler: BaseHTTPRequestHandler) -> None:
        latest = hooks.receiver.latest
        answer = printed.post("/palimpsest", content=latest.body, headers=latest.headers)
        answering(answer.status_code)(handler)

    hooks.receiver.react = hand_on
    delivery = hooks.tested(hook)
    hooks.post(hook, "deliveries", delivery["id"], "replay")
    deliver_due()
    (delivery,) = hooks.deliveries(hook)
    assert [attempt["status_code"] for attempt in delivery["log"]] == [204, 204]
    assert names["taken"] == {delivery["message_id"]}
    assert capsys.readouterr().out.count(f"webhook.test {{'webhook': '{hook['id']}'}}") == 1
    forged = printed.post("/palimpsest", content=b"{}", headers=hooks.receiver.latest.headers)
    assert forged.status_code == 400


def test_the_commands_of_the_guide_work_as_printed(palimpsest: Palimpsest, hooks: Hooks) -> None:
    lines = [line for block in blocks("sh") for line in block.strip().splitlines()]
    assert len(lines) == 7
    known = {"https://ci.example.com/palimpsest": hooks.receiver.url}
    for line in lines:
        name, *arguments = (known.get(word, word) for word in shlex.split(line))
        assert name == "palimpsest"
        result = palimpsest(*arguments)
        assert result.code == 0, (line, result)
        deliver_due()
        (hook,) = hooks.world.get("/webhooks")["data"]
        known["$WEBHOOK"] = hook["id"]
        if deliveries := hooks.deliveries(hook):
            known["$DELIVERY"] = deliveries[0]["id"]
    assert [delivery["attempts"] for delivery in hooks.deliveries(hook)] == [2]


def test_the_guide_names_every_event() -> None:
    assert [event for event in EventType if f"`{event}`" not in GUIDE] == []
