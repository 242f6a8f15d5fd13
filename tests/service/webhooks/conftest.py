"""A receiver, and a tenant whose webhooks call it."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from service.config import get_settings
from service.db import EVERY_TENANT, engine_for, session_scope
from service.webhooks import addresses
from service.webhooks.leases import Claim, claim_due
from tests.scenes import World
from tests.service.webhooks.receiver import Receiver, receiving
from workers.webhooks import deliver_due

Resolve = Callable[[dict[str, list[str]]], list[str]]


@pytest.fixture
def on_premises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Webhooks may call this machine, without TLS."""
    settings = get_settings().model_copy(update={"webhook_allow_private": True, "webhook_allow_http": True})
    monkeypatch.setattr(addresses, "get_settings", lambda: settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Says what names resolve to; each name gives its answers in turn, and the last for ever. Returns the names asked for."""
    real = socket.getaddrinfo

    def resolve(answers: dict[str, list[str]]) -> list[str]:
        asked: list[str] = []

        def getaddrinfo(host: str, port: int, *arguments: Any, **more: Any) -> Any:
            if host not in answers:
                return real(host, port, *arguments, **more)
            asked.append(host)
            turn = answers[host]
            addresses = (turn.pop(0) if len(turn) > 1 else turn[0]).split()
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [
                (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
                for one in addresses
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return resolve


class Hooks:
    """Webhooks of the tenant `acme`, and the part of whoever sends to them."""

    def __init__(self, world: World, receiver: Receiver, database: str) -> None:
        self.world, self.receiver, self._database = world, receiver, database

    def create(self, **fields: object) -> dict[str, Any]:
        """Makes a webhook that calls the receiver."""
        body = {"url": self.receiver.url, **fields}
        return self.world.ok(self.world.client.post("/v1/webhooks", json=body))

    def post(self, hook: dict[str, Any], *path: str, **body: object) -> dict[str, Any]:
        """POSTs to something of the webhook."""
        where = "/".join(["/v1/webhooks", hook["id"], *path])
        return self.world.ok(self.world.client.post(where, json=body or None))

    def change(self, hook: dict[str, Any], **body: object) -> dict[str, Any]:
        """PATCHes the webhook."""
        return self.world.ok(self.world.client.patch(f"/v1/webhooks/{hook['id']}", json=body))

    def read(self, hook: dict[str, Any]) -> dict[str, Any]:
        """Reads the webhook."""
        return self.world.get(f"/webhooks/{hook['id']}")

    def deliveries(self, hook: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
        """The webhook's log, newest first."""
        data: list[dict[str, Any]] = self.world.get(f"/webhooks/{hook['id']}/deliveries{query}")["data"]
        return data

    def tested(self, hook: dict[str, Any]) -> dict[str, Any]:
        """Sends a test at once; returns its delivery."""
        made = self.post(hook, "test")
        deliver_due()
        return self.world.get(f"/webhooks/{hook['id']}/deliveries/{made['id']}")

    def sql(self, statement: str, **values: object) -> list[Any]:
        """Runs SQL as the owner, from whom nothing is hidden."""
        with engine_for(self._database).begin() as connection:
            connection.execute(text("SET LOCAL ROLE palimpsest_owner"))
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def make_due(self) -> None:
        """Lets the time pass until every pending delivery is due, and no lease lasts."""
        self.sql(
            "UPDATE webhook_deliveries SET next_attempt_at = now(), lease_expires_at = NULL"
            " WHERE state = 'pending'"
        )

    def claim(self, limit: int = 8) -> list[Claim]:
        """Claims due deliveries."""
        with session_scope(tenant=EVERY_TENANT, role="worker") as session:
            return claim_due(session, limit=limit)


@pytest.fixture
def hooks(world: World, receiver: Receiver, database: str, on_premises: None) -> Hooks:
    return Hooks(world, receiver, database)
