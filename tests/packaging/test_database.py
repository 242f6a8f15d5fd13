"""The login script of docker-compose.yml and the migrations, together on a real Postgres."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command

from service.embedded import postgres as embedded
from service.embedded.postgres import PostgresServer
from service.migrate import alembic_config, upgrade

ROOT = Path(__file__).parents[2]
PASSWORD = "not-the-superusers"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A Postgres as its official image leaves it: a superuser, no login and no database of the service."""
    folder = tmp_path_factory.mktemp("compose")
    running = PostgresServer(
        folder / "postgres", logs_dir=folder / "logs", password="the-superusers", durable=False
    ).start()
    try:
        with psycopg.connect(running.url_for("postgres", "postgres"), autocommit=True) as connection:
            # The embedded launcher sets this for every session; the image's default is empty.
            connection.execute("ALTER ROLE ALL SET createrole_self_grant = ''")
            connection.execute(f"DROP DATABASE {embedded.DATABASE}".encode())
            connection.execute(f"DROP ROLE {embedded.OWNER}".encode())
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def database_url(server: PostgresServer) -> str:
    """The address that docker-compose.yml hands to the service, after the login script and the migrations."""
    environment = {
        **os.environ,
        "PATH": f"{embedded._binaries()}:{os.environ['PATH']}",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGPASSWORD": server.password,
        "POSTGRES_USER": "postgres",
        "PALIMPSEST_DB_PASSWORD": PASSWORD,
    }
    subprocess.run([ROOT / "deploy" / "postgres-login.sh"], env=environment, check=True, timeout=60)
    url = f"postgresql://palimpsest:{PASSWORD}@127.0.0.1:{server.port}/palimpsest"
    upgrade(url)
    return url


def test_the_service_logs_in_without_superuser_rights(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        rights = connection.execute(
            "SELECT rolsuper, rolbypassrls, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert rights == (False, False, False, True)


@pytest.mark.parametrize("role", ["palimpsest_app", "palimpsest_worker"])
def test_the_login_can_take_the_roles_of_the_service(database_url: str, role: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT set_config('role', %s, true)", [role])
        assert connection.execute("SELECT current_user").fetchone() == (role,)
        assert connection.execute("SELECT count(*) FROM models").fetchone() == (0,)


def test_migrating_again_changes_nothing(database_url: str) -> None:
    upgrade(database_url)


def test_the_tables_of_the_source_need_no_further_migration(database_url: str) -> None:
    command.check(alembic_config(database_url))
