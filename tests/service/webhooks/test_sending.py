"""One request to a receiver: signed, bounded in time and size, and nothing that it answers does harm."""

import threading
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from service.webhooks import sending
from service.webhooks.sending import Message, send
from tests.service.webhooks.conftest import Hooks
from tests.service.webhooks.receiver import Receiver, answering

ROOT = Path(__file__).parents[3]


def test_a_message_is_signed_as_the_specification_has_it(hooks: Hooks) -> None:
    hook = hooks.create()
    delivery = hooks.tested(hook)
    message = hooks.receiver.latest
    assert message.verified(hook["secret"]) == {
        "type": "webhook.test",
        "timestamp": delivery["created_at"].replace("Z", "+00:00"),
        "data": {"webhook": hook["id"]},
    }
    assert message.id == delivery["message_id"]
    assert message.path == "/hooks?of=palimpsest"
    assert message.headers["content-type"] == "application/json"
    assert message.headers["user-agent"].startswith("palimpsest/")
    assert (delivery["state"], delivery["attempts"], delivery["status_code"]) == ("delivered", 1, 200)
    assert delivery["next_attempt_at"] is None
    with pytest.raises(WebhookVerificationError):
        message.verified(hooks.create()["secret"])


def test_both_secrets_sign_during_the_overlap_and_then_the_new_one_alone(hooks: Hooks) -> None:
    hook = hooks.create()
    rotated = hooks.post(hook, "rotate", overlap_seconds=3600)
    assert (
        hooks.read(hook)["previous_secret_signs_until"] == rotated["previous_secret_signs_until"] is not None
    )
    hooks.tested(hook)
    for secret in (hook["secret"], rotated["secret"]):
        assert hooks.receiver.latest.verified(secret)
    assert hooks.receiver.latest.headers["webhook-signature"].count("v1,") == 2
    hooks.sql("UPDATE webhook_secrets SET expires_at = now() WHERE expires_at IS NOT NULL")
    hooks.tested(hook)
    assert hooks.receiver.latest.verified(rotated["secret"])
    with pytest.raises(WebhookVerificationError):
        hooks.receiver.latest.verified(hook["secret"])
    assert len(hooks.sql("SELECT FROM webhook_secrets")) == 1, "what has expired is deleted"


def test_without_an_overlap_and_after_a_second_rotation_older_secrets_sign_no_more(hooks: Hooks) -> None:
    hook = hooks.create()
    second = hooks.post(hook, "rotate")["secret"]
    third = hooks.post(hook, "rotate")["secret"]
    hooks.tested(hook)
    assert [signs(hooks.receiver, secret) for secret in (hook["secret"], second, third)] == [
        False,
        True,
        True,
    ]
    fourth = hooks.post(hook, "rotate", overlap_seconds=0)["secret"]
    hooks.tested(hook)
    assert [signs(hooks.receiver, secret) for secret in (second, third, fourth)] == [False, False, True]


def signs(receiver: Receiver, secret: str) -> bool:
    try:
        return bool(receiver.latest.verified(secret))
    except WebhookVerificationError:
        return False


def test_a_redirect_is_not_followed(hooks: Hooks) -> None:
    hook = hooks.create()
    hooks.receiver.react = answering(307, Location=hooks.receiver.url)
    delivery = hooks.tested(hook)
    assert len(hooks.receiver.received) == 1
    assert (delivery["state"], delivery["status_code"]) == ("pending", 307)
    assert "not followed" in delivery["error"]


def test_a_receiver_that_hangs_is_given_up_soon(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "READ_SECONDS", 0.3)
    over = threading.Event()
    hooks.receiver.react = lambda _handler: over.wait(60)  # type: ignore[assignment,return-value]  # no answer is the point
    delivery = hooks.tested(hooks.create())
    over.set()
    assert delivery["error"] == "no answer within 0.3 s"
    assert 0.3 <= delivery["log"][0]["seconds"] < 10


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_receiver_that_trickles_is_given_up_at_the_deadline(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(sending, "TOTAL_SECONDS", 0.5)
    over = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(beginning)
        while not over.wait(0.05):
            handler.wfile.write(b"H" if not beginning else b"x")

    hooks.receiver.react = trickle
    delivery = hooks.tested(hooks.create())
    over.set()
    assert (delivery["state"], delivery["status_code"]) == ("pending", None)
    assert delivery["log"][0]["seconds"] < 10


def test_of_a_huge_answer_little_is_read_and_its_status_counts(hooks: Hooks) -> None:
    written, ended = 0, threading.Event()

    def pour(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n")
            while written < 2**30:
                handler.wfile.write(b"x" * 65536)
                written += 65536
        except OSError:
            ended.set()

    hooks.receiver.react = pour
    delivery = hooks.tested(hooks.create())
    assert (delivery["state"], delivery["status_code"]) == ("delivered", 200)
    assert ended.wait(60)
    assert written < 64 * 2**20, "what the sockets' buffers hold at most"


def test_headers_without_end_are_given_up(hooks: Hooks) -> None:
    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: " + b"x" * 2**20 + b"\r\n\r\n")

    hooks.receiver.react = pour
    assert hooks.tested(hooks.create())["error"].startswith("the connection broke")


def test_what_is_no_http_is_an_attempt_that_failed(hooks: Hooks) -> None:
    hooks.receiver.react = lambda handler: handler.wfile.write(b"220 mail.example ESMTP\r\n")  # type: ignore[assignment,return-value]
    assert hooks.tested(hooks.create())["error"].startswith("the connection broke")


def test_the_moment_that_is_signed_is_the_same_in_every_time_zone(
    receiver: Receiver, on_premises: None
) -> None:
    secret, now = "whsec_" + "A" * 43 + "=", datetime.now(UTC)
    message = Message("msg_1", "webhook.test", now, {})
    for zone in (UTC, timezone(timedelta(hours=5))):
        assert send(message, url=receiver.url, secrets=[secret], now=now.astimezone(zone)).is_success
        assert receiver.latest.verified(secret)
