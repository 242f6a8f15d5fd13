"""Rigs: on the shared servers, or on servers of their own that a test may break."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.config import get_settings
from service.db import session_scope
from service.embedded import PostgresServer, ValkeyServer
from service.failpoints import _armed
from service.migrate import upgrade
from service.security import create_key
from tests.faults.crowds import Arm
from tests.faults.rig import Rig
from tests.scenes import ALL_SCOPES, World


@pytest.fixture
def rig(database: str, redis_url: str, tmp_path: Path) -> Iterator[Rig]:
    """Processes of its own over the shared Postgres and Valkey, an API running, no worker yet."""
    made = Rig(tmp_path, database_url=database, redis_url=redis_url)
    try:
        made.start_api()
        yield made
    finally:
        made.end()


@pytest.fixture
def breakable(tmp_path: Path) -> Iterator[Rig]:
    """A rig whose `servers` (a durable Postgres, a Valkey) are its own, for tests that break them."""
    postgres = PostgresServer(tmp_path / "postgres", logs_dir=tmp_path / "logs", password="test").start()
    valkey = ValkeyServer(tmp_path / "valkey", logs_dir=tmp_path / "logs", password="test").start()
    upgrade(postgres.url)
    made = Rig(tmp_path, database_url=postgres.url, redis_url=valkey.url, servers=[postgres, valkey])
    try:
        made.start_api()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="session")
def two_apis(database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two API processes for all tests that break none of them; the tests play the worker themselves."""
    made = Rig(tmp_path_factory.mktemp("two-apis"), database_url=database_url, redis_url=redis_url)
    try:
        for _ in range(2):
            made.start_api(ARTIFACT_URL=os.environ["ARTIFACT_URL"])
        yield made
    finally:
        made.end()


@pytest.fixture
def clients(database: str, two_apis: Rig) -> Iterator[list[httpx.Client]]:
    """A client of each of the two API processes, with a key of the tenant `acme`, which has nothing yet."""
    with session_scope(tenant="acme") as session:
        _, key = create_key(session, tenant="acme", scopes=ALL_SCOPES, name="crowd")
    for client in two_apis.clients:
        client.headers["Authorization"] = f"Bearer {key}"
    yield two_apis.clients
    two_apis.check_ledger()


@pytest.fixture
def crowd(clients: list[httpx.Client]) -> World:
    """The world as the first of the two API processes shows it."""
    return World(clients[0])  # type: ignore[arg-type]  # a TestClient is an httpx client, and World needs no more


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Arm]:
    """Arms failpoints of the worker that this process plays; gives the folder where each leaves a file as it fires."""

    def arm(failpoints: str) -> Path:
        once = tmp_path / failpoints.replace(":", "-")
        once.mkdir()
        monkeypatch.setenv("PALIMPSEST_FAILPOINTS", failpoints)
        monkeypatch.setenv("PALIMPSEST_FAILPOINTS_ONCE", str(once))
        get_settings.cache_clear()
        _armed.cache_clear()
        return once

    yield arm
    monkeypatch.undo()
    get_settings.cache_clear()
    _armed.cache_clear()
