"""Rigs: on the shared servers, or on servers of their own that a test may break."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded import PostgresServer, ValkeyServer
from service.migrate import upgrade
from tests.faults.rig import Rig


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
