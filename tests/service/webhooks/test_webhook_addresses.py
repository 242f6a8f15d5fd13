"""What webhooks may not call, by whatever name, and that they connect to nothing but what was checked."""

import ipaddress
import shutil
import socket
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.webhooks import sending
from service.webhooks.addresses import objection
from service.webhooks.sending import Message, send
from tests.scenes import World
from tests.service.webhooks.conftest import Hooks, Resolve
from tests.service.webhooks.receiver import Receiver, receiving

PUBLIC = ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"]
PRIVATE = [
    "127.0.0.1", "127.8.9.1", "::1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "fd00::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fec0::1",
]  # fmt: skip
NEVER = [
    "169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "0.0.0.0", "::",
    "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "100.64.0.1", "::7f00:1",
    "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
]  # fmt: skip
SECRET = "whsec_" + "A" * 43 + "="
MESSAGE = Message("msg_1", "webhook.test", datetime(2030, 1, 1, tzinfo=UTC), {})


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_called(address: str) -> None:
    assert objection(ipaddress.ip_address(address), allow_private=False) is None


@pytest.mark.parametrize("address", PRIVATE)
def test_private_and_loopback_addresses_may_be_called_only_where_the_operator_says_so(address: str) -> None:
    assert objection(ipaddress.ip_address(address), allow_private=False)
    assert objection(ipaddress.ip_address(address), allow_private=True) is None


@pytest.mark.parametrize("address", NEVER)
def test_link_local_and_other_special_addresses_are_never_called(address: str) -> None:
    assert objection(ipaddress.ip_address(address), allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.215.14/", "ftp://93.184.215.14/", "https://", "https:///path", "//93.184.215.14/", "hooks",
        "https://user:word@93.184.215.14/", "https://user@93.184.215.14/", "https://93.184.215.14:0/",
        "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://localhost/",
        "https://2130706433/", "https://0x7f.1/", "https://127.1/", "https://0177.0.0.1/",
        "https://169.254.169.254/latest/meta-data/", "https://in.test/", "https://loop.test/",
        "https://mapped.test/", "https://mixed.test/", "https://none.test/", "https://ü.test:99999/",
        "https://" + "a" * 70 + ".test/", "gopher://loop.test:6379/_FLUSHALL", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_addresses_off_limits_are_refused_when_a_webhook_is_made_and_when_it_is_changed(
    client: TestClient, names: Resolve, url: str
) -> None:
    names({
        "in.test": ["10.0.0.7"], "loop.test": ["127.0.0.1"], "mapped.test": ["::ffff:127.0.0.1"],
        "mixed.test": ["93.184.215.14 10.0.0.7"], "none.test": [""],
    })  # fmt: skip
    refused = client.post("/v1/webhooks", json={"url": url})
    assert World(client).problem(refused) == (422, "webhook_url_refused")
    assert "10.0.0.7" not in refused.text, "what names mean inside is nobody's business"
    hook = World.ok(client.post("/v1/webhooks", json={"url": "https://93.184.215.14/"}))
    changed = client.patch(f"/v1/webhooks/{hook['id']}", json={"url": url})
    assert World(client).problem(changed) == (422, "webhook_url_refused")


def test_a_name_that_turned_private_is_not_called_and_the_log_says_so(
    hooks: Hooks, names: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = names({"turning.test": ["93.184.215.14", "169.254.169.254"]})
    hook = hooks.create(url=f"http://turning.test:{hooks.receiver.port}/")
    delivery = hooks.tested(hook)
    assert asked == ["turning.test"] * 2
    assert hooks.receiver.received == []
    assert (delivery["state"], delivery["status_code"]) == ("pending", None)
    assert delivery["error"].startswith("not sent: its host leads to a link-local")
    assert "169.254" not in delivery["error"]


def test_the_connection_goes_to_the_address_that_was_checked_whatever_the_name_means_a_moment_later(
    receiver: Receiver, names: Resolve, on_premises: None
) -> None:
    asked = names({"rebinding.test": ["127.0.0.1", "203.0.113.1"]})
    answer = send(
        MESSAGE, url=f"http://rebinding.test:{receiver.port}/a?b", secrets=[SECRET], now=MESSAGE.happened_at
    )
    assert answer.is_success
    assert asked == ["rebinding.test"], "resolved once"
    assert receiver.latest.headers["host"] == f"rebinding.test:{receiver.port}"
    assert receiver.latest.path == "/a?b"


def test_the_next_address_of_a_name_is_tried_where_one_does_not_answer(
    receiver: Receiver, names: Resolve, on_premises: None
) -> None:
    names({"two.test": ["127.0.0.99 127.0.0.1"]})
    answer = send(MESSAGE, url=f"http://two.test:{receiver.port}/", secrets=[SECRET], now=MESSAGE.happened_at)
    assert answer.is_success


def test_proxies_of_the_environment_are_not_used(
    receiver: Receiver, on_premises: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert send(MESSAGE, url=receiver.url, secrets=[SECRET], now=MESSAGE.happened_at).is_success


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with the openssl command")
def test_over_tls_the_certificate_must_be_that_of_the_name_and_the_name_is_asked_for(
    names: Resolve, on_premises: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    asked_for: list[str | None] = []
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    serving.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(sending, "_certificates", lambda: trusting)
    names({"hooks.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    with receiving(serving) as receiver:
        known, other = (
            send(MESSAGE, url=f"https://{name}:{receiver.port}/", secrets=[SECRET], now=MESSAGE.happened_at)
            for name in ("hooks.test", "other.test")
        )
        assert known.is_success
        assert "certificate" in (other.error or "").lower()
        assert asked_for == ["hooks.test", "other.test"]
        assert len(receiver.received) == 1


def test_the_public_authorities_are_believed_and_a_self_signed_certificate_is_not() -> None:
    context = sending._certificates()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) > 50


def test_a_port_at_which_nobody_listens_is_an_attempt_that_failed(hooks: Hooks) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    delivery = hooks.tested(hooks.create(url=f"http://127.0.0.1:{port}/"))
    assert delivery["error"].startswith("no connection: ")
    assert (delivery["state"], delivery["attempts"]) == ("pending", 1)
