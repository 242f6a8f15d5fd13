"""Migrations up and down while updates are queued and running: nothing is lost, and the service is never stopped for long."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine, make_url, text

import migrations
from service.db import driver_url
from service.migrate import alembic_config, downgrade, revisions, upgrade
from tests.faults.rig import QUICK, ROOT, SHORT, Beside, Rig, until

NEXT_RELEASE = """
from alembic import op

revision, down_revision = "next", "{head}"

def upgrade():
    for table in ("api_keys", "models", "updates", "versions", "examples"):
        op.execute(f"ALTER TABLE {{table}} ADD COLUMN of_the_next_release text")
    op.execute("CREATE TABLE of_the_next_release (id bigint PRIMARY KEY)")
"""

IN_THE_OTHER_ORDER = """
from alembic import op

revision, down_revision = "next", "{head}"

def upgrade():
    op.execute("ALTER TABLE models ADD COLUMN of_the_next_release text")
    op.execute("SELECT pg_sleep(0.2)")
    op.execute("ALTER TABLE updates ADD COLUMN of_the_next_release text")
"""

MIGRATE = """
import sys
from alembic import command
from service.migrate import alembic_config

config = alembic_config(sys.argv[1])
config.set_main_option("version_locations", sys.argv[2])
command.upgrade(config, "head")
"""


@pytest.fixture
def empty_database(database_url: str) -> Iterator[str]:
    """A database of its own, with nothing in it."""
    url = make_url(database_url).set(database="upgrade")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE upgrade")
        try:
            yield url.render_as_string(hide_password=False)
        finally:
            connection.execute(
                "DROP DATABASE upgrade WITH (FORCE)"
            )  # a session that has just ended may still count


def columns(database_url: str) -> set[tuple[str, ...]]:
    """Every column of every table."""
    with create_engine(driver_url(database_url)).connect() as connection:
        rows = connection.execute(
            text(
                "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
                " WHERE table_schema = 'public'"
            )
        )
        return {tuple(row) for row in rows}


def test_every_revision_can_be_taken_back_and_made_again(empty_database: str) -> None:
    stages = []
    for revision in revisions():
        upgrade(empty_database, revision=revision)
        stages.append(columns(empty_database))
    for revision, stage in zip(revisions()[-2::-1], stages[-2::-1], strict=True):
        downgrade(empty_database, revision=revision)
        assert columns(empty_database) == stage, revision
    downgrade(empty_database, revision="base")
    upgrade(empty_database)
    command.check(alembic_config(empty_database))


@pytest.fixture
def locations(tmp_path: Path) -> Callable[[str], str]:
    """Where this release's revisions lie, and one more that the test writes: `locations(source)`."""

    def write(source: str) -> str:
        folder = tmp_path / "versions"
        folder.mkdir()
        (folder / "next.py").write_text(source.format(head=revisions()[-1]))
        return f"{Path(migrations.__file__).parent / 'versions'}:{folder}"

    return write


def test_a_migration_gives_way_to_a_request_that_holds_one_of_its_tables_and_waits_for_another(
    empty_database: str, locations: Callable[[str], str], tmp_path: Path
) -> None:
    upgrade(empty_database)
    with psycopg.connect(empty_database) as request:
        request.execute("SELECT count(*) FROM updates")
        migrating = start_migrating(
            empty_database,
            locations(IN_THE_OTHER_ORDER),
            environment=dict(os.environ),
            log=tmp_path / "a.log",
        )
        until(lambda: is_being_changed(empty_database, "models"), what="a migration that holds models")
        request.execute("SELECT count(*) FROM models")  # each waits for the other now
    assert migrating.wait(120) == 0
    assert "tries again" in said(tmp_path)
    assert ("updates", "of_the_next_release", "text", "YES") in columns(empty_database)


def two_updates(rig: Rig) -> tuple[str, str]:
    """Posts two updates of one model, the first of which takes its seconds; returns their ids."""
    rig.learnable("one", "two")
    return (
        rig.world.request("one", training=SHORT)["id"],
        rig.world.request("two", training=QUICK)["id"],
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_updates_outlive_migrations_down_to_the_first_revision_and_up_again(breakable: Rig) -> None:
    rig = breakable
    worker = rig.start_worker()
    running, queued = two_updates(rig)
    rig.at(running)
    for revision in revisions()[-2::-1]:
        downgrade(rig.database_url, revision=revision)
    assert rig.world.client.get("/readyz").status_code == 503
    assert "palimpsest migrate" in rig.world.client.get("/readyz").json()["checks"]["postgres"]
    for revision in revisions()[1:]:
        upgrade(rig.database_url, revision=revision)
    until(lambda: rig.world.client.get("/readyz").is_success, what="the API's recovery")
    ended = [rig.ended(update, seconds=300) for update in (running, queued)]
    assert [(update["status"], update["version"]) for update in ended] == [("promoted", 1), ("promoted", 2)]
    assert (worker.status, rig.api.status) == (None, None)
    rig.check_ledger()


class Reader(Beside):
    """Reads through the API without a pause, and keeps what went wrong."""

    def __init__(self, client: httpx.Client, path: str) -> None:
        super().__init__()
        self._client, self._path = client, path
        self.count, self.slowest_seconds = 0, 0.0
        self.wrong: list[str] = []

    def _run(self) -> None:
        while not self._stopping.is_set():
            start = time.monotonic()
            answer = self._client.get(self._path)
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - start)
            self.count += 1
            if not answer.is_success:
                self.wrong.append(answer.text)


@contextmanager
def long_transaction(database_url: str) -> Iterator[None]:
    """Somebody reads a table for a long time, as a backup does; no migration can change it meanwhile."""
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT set_config('role', 'palimpsest_app', true)")
        connection.execute("SELECT count(*) FROM models")
        yield


def is_being_changed(database_url: str, table: str) -> bool:
    """Whether somebody holds `table` for himself alone."""
    with psycopg.connect(database_url) as connection:
        held = "relation = %s::regclass AND mode = 'AccessExclusiveLock' AND granted"
        return bool(connection.execute(f"SELECT count(*) FROM pg_locks WHERE {held}", [table]).fetchone()[0])  # type: ignore[index]  # a count is one row


def start_migrating(
    database_url: str, locations: str, *, environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Migrates as the next release would, in a process of its own."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", MIGRATE, database_url, locations],
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )


def said(folder: Path) -> str:
    """What the migrating processes have written."""
    return "".join(log.read_text() for log in folder.glob("*.log"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_next_releases_schema_comes_under_the_running_service_and_stops_nobody(
    breakable: Rig, locations: Callable[[str], str], tmp_path: Path
) -> None:
    rig, next_release = breakable, locations(NEXT_RELEASE)
    rig.start_worker()
    running, queued = two_updates(rig)
    rig.at(running)
    with Reader(rig.world.client, f"/v1/updates/{running}") as reader:
        until(lambda: reader.count > 40, what="statements that every connection has prepared")
        with long_transaction(rig.database_url):
            # Two at once: one of them does it, the other waits and finds it done.
            migrating = [
                start_migrating(
                    rig.database_url, next_release, environment=rig.environment, log=tmp_path / f"{name}.log"
                )
                for name in ("a", "b")
            ]
            until(lambda: "tries again" in said(tmp_path), what="a migration that lets others pass")
            start = reader.count
            until(lambda: reader.count > start + 10, what="requests served between the tries")
            assert all(one.poll() is None for one in migrating)
        assert [one.wait(240) for one in migrating] == [0, 0], said(tmp_path)
        start = reader.count
        until(lambda: reader.count > start + 40, what="requests on the new schema")
    assert not reader.wrong
    assert reader.slowest_seconds < 15  # half a second of waiting for each of five locks, and a busy machine
    assert rig.world.client.get("/readyz").status_code == 200
    ended = [rig.ended(update, seconds=300) for update in (running, queued)]
    assert [(update["status"], update["attempt"]) for update in ended] == [("promoted", 1), ("promoted", 1)]
    rig.check_ledger()
