"""Backups: complete, refused when damaged, and never over something that is there already."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from service.artifacts import ArtifactStore
from service.backup import BackupFailed, restore_backup, restore_into_state, take_backup
from service.config import get_settings
from service.db import engine_for
from service.embedded import PostgresServer
from service.models import Base
from tests.scenes import World


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Another Postgres, which at first has none of the service's roles."""
    folder = tmp_path_factory.mktemp("other")
    with PostgresServer(folder / "pg", logs_dir=folder / "logs", password="other", durable=False) as server:
        yield server


@pytest.fixture
def empty(other_server: PostgresServer) -> str:
    """The address of an empty database there."""
    name = f"empty_{secrets.token_hex(4)}"
    with psycopg.connect(other_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return other_server.url_for("palimpsest", name)


@pytest.fixture
def filled(world: World, tmp_path: Path) -> str:
    """The address of a store; beside it a database with rows of every kind that needs no training."""
    world.model()
    world.task("a")
    world.request("a")
    store = ArtifactStore((tmp_path / "store").as_uri())
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "version.json").write_text("{}")
    sha256, size = store.put_folder(tmp_path / "version")
    with engine_for(get_settings().database_url).begin() as connection:
        connection.execute(text("SET ROLE palimpsest_owner"))
        connection.execute(
            text("UPDATE versions SET artifact_sha256 = :sha256, artifact_bytes = :size"),
            {"sha256": sha256, "size": size},
        )
    return (tmp_path / "store").as_uri()


def counts(database_url: str) -> dict[str, object]:
    """What every table holds: how many rows, and a hash over all of them."""
    found: dict[str, object] = {}
    with psycopg.connect(database_url) as connection:
        for table in Base.metadata.tables:
            query = f"SELECT count(*), md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {table} t"
            found[table] = connection.execute(query.encode()).fetchone()
    return found


def grants(database_url: str) -> list[tuple[object, ...]]:
    """Owners, rights and policies: what keeps tenants apart."""
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            "SELECT c.relname, pg_get_userbyid(c.relowner), c.relrowsecurity, c.relforcerowsecurity,"
            " (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(c.relacl) a),"
            " (SELECT array_agg(p.polname || pg_get_expr(p.polqual, p.polrelid) ORDER BY p.polname)"
            "  FROM pg_policy p WHERE p.polrelid = c.oid)"
            " FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'S') ORDER BY 1"
        ).fetchall()


def test_every_row_right_and_artifact_comes_back(filled: str, empty: str, tmp_path: Path) -> None:
    source = get_settings().database_url
    manifest = take_backup(tmp_path / "backup", database_url=source, artifact_url=filled)
    target = (tmp_path / "other-store").as_uri()
    restore_backup(tmp_path / "backup", database_url=empty, artifact_url=target)
    before = counts(source)
    assert counts(empty) == before
    assert {name for name, (rows, _) in before.items() if rows} >= {
        "tenants",
        "models",
        "examples",
        "updates",
    }
    assert grants(empty) == grants(source)
    assert len(manifest.artifacts) == 1
    ArtifactStore(target).open_verified(manifest.artifacts[0]).close()


def test_a_restore_puts_the_backups_artifact_in_place_of_a_damaged_one(
    filled: str, empty: str, tmp_path: Path
) -> None:
    source = get_settings().database_url.replace(
        "postgresql://", "postgresql+psycopg://"
    )  # as SQLAlchemy spells it
    manifest = take_backup(tmp_path / "backup", database_url=source, artifact_url=filled)
    (artifact,) = (tmp_path / "store").glob("??/*.tar")
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"!")
    restore_backup(tmp_path / "backup", database_url=empty, artifact_url=filled)
    ArtifactStore(filled).open_verified(manifest.artifacts[0]).close()


def test_an_error_about_the_database_names_its_address_and_no_password(tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match="No connection to") as failed:
        take_backup(
            tmp_path / "backup",
            database_url="postgresql+psycopg://me:hush@127.0.0.1:1/none",
            artifact_url=tmp_path.as_uri(),
        )
    assert "127.0.0.1:1/none" in str(failed.value)
    assert "hush" not in str(failed.value)
    with pytest.raises(BackupFailed, match="No connection to") as failed:
        take_backup(
            tmp_path / "other",
            database_url="postgresql://me@127.0.0.1:1/none?password=hush",
            artifact_url=tmp_path.as_uri(),
        )
    assert "hush" not in str(failed.value)


def test_a_database_without_a_schema_has_nothing_to_back_up(empty: str, tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match="has not been migrated"):
        take_backup(tmp_path / "backup", database_url=empty, artifact_url=tmp_path.as_uri())


def test_rows_of_every_table_are_in_the_dump_whatever_row_level_security_says(database: str) -> None:
    with psycopg.connect(database) as connection:
        hidden = connection.execute(
            "SELECT relname FROM pg_class c WHERE relrowsecurity AND relkind = 'r' AND NOT EXISTS (SELECT FROM pg_policy p"
            " WHERE p.polrelid = c.oid AND pg_get_expr(p.polqual, p.polrelid) = 'true'"
            " AND p.polroles = ARRAY['palimpsest_owner'::regrole::oid])"
        ).fetchall()
    assert hidden == []


def test_a_backup_keeps_its_secrets_from_others(filled: str, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir(mode=0o755)
    take_backup(tmp_path / "backup", database_url=get_settings().database_url, artifact_url=filled)
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    assert (tmp_path / "backup" / "database.dump").stat().st_mode & 0o077 == 0


def test_a_backup_never_goes_over_something_else(filled: str, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "mine").touch()
    with pytest.raises(BackupFailed, match="not empty"):
        take_backup(tmp_path / "backup", database_url=get_settings().database_url, artifact_url=filled)


def test_a_missing_artifact_fails_the_backup_and_leaves_no_manifest(filled: str, tmp_path: Path) -> None:
    elsewhere = (tmp_path / "empty").as_uri()
    with pytest.raises(BackupFailed, match="missing from the artifact store"):
        take_backup(tmp_path / "backup", database_url=get_settings().database_url, artifact_url=elsewhere)
    with pytest.raises(BackupFailed, match="not finished"):
        restore_backup(
            tmp_path / "backup", database_url="postgresql://127.0.0.1:1/none", artifact_url=elsewhere
        )


def test_a_restore_into_a_database_with_tables_is_refused(filled: str, tmp_path: Path) -> None:
    source = get_settings().database_url
    take_backup(tmp_path / "backup", database_url=source, artifact_url=filled)
    with pytest.raises(BackupFailed, match=r"holds \d+ tables already"):
        restore_backup(tmp_path / "backup", database_url=source, artifact_url=filled)


@pytest.mark.parametrize("damaged", ["database.dump", "artifact"])
def test_a_damaged_backup_is_refused_before_a_table_is_made(
    damaged: str, filled: str, empty: str, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    take_backup(folder, database_url=get_settings().database_url, artifact_url=filled)
    file = folder / damaged if damaged == "database.dump" else next((folder / "artifacts").rglob("*.tar"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BackupFailed, match="does not match its hash"):
        restore_backup(folder, database_url=empty, artifact_url=(tmp_path / "new").as_uri())
    with psycopg.connect(empty) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone() == (0,)


def test_a_store_that_is_kept_otherwise_must_hold_what_the_dump_refers_to(
    filled: str, empty: str, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    source = get_settings().database_url
    take_backup(folder, database_url=source, artifact_url=filled, with_artifacts=False)
    assert not (folder / "artifacts").exists()
    with pytest.raises(BackupFailed, match="lacks 1 artifacts"):
        restore_backup(folder, database_url=empty, artifact_url=(tmp_path / "new").as_uri())
    restore_backup(folder, database_url=empty, artifact_url=filled)


def test_a_backup_without_secrets_makes_no_state_folder(filled: str, tmp_path: Path) -> None:
    take_backup(tmp_path / "backup", database_url=get_settings().database_url, artifact_url=filled)
    with pytest.raises(BackupFailed, match=r"no secrets\.json"):
        restore_into_state(tmp_path / "backup", tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_state_folder_in_use_is_never_restored_into(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "secrets.json").write_text(json.dumps({}))
    with pytest.raises(BackupFailed, match="holds an installation already"):
        restore_into_state(tmp_path / "backup", tmp_path / "state")
