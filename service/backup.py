"""Backup and restore: a folder with a dump of the database and every artifact that the dump refers to.

The database comes first, the artifacts after it. Artifacts never change and are named by their content, so whatever
was added to the store in between does no harm, and each file proves itself by its hash. The list of artifacts is
read in the dump's own snapshot. The manifest is written last: a folder without one is no backup.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, make_url

from service.artifacts import ArtifactDamaged, ArtifactStore
from service.embedded.postgres import PostgresServer, find_tool
from service.embedded.state import Secrets, StateFolder, write_private_json
from service.errors import ServiceError
from service.migrate import upgrade
from service.version import VERSION

Say = Callable[[str], None]
DUMP, ARTIFACTS, MANIFEST, SECRETS = "database.dump", "artifacts", "manifest.json", "secrets.json"

REFERRED_TO = """
    SELECT artifact_sha256 FROM versions WHERE artifact_sha256 IS NOT NULL
    UNION SELECT state_sha256 FROM versions WHERE state_sha256 IS NOT NULL ORDER BY 1
"""
# Uploads of imports without a version go with the end of their import, which may come while the backup is taken.
WAITING_UPLOADS = """
    SELECT DISTINCT parameters->>'sha256' FROM updates
    WHERE strategy = 'import' AND state IN ('queued', 'training', 'evaluating') AND version IS NULL ORDER BY 1
"""
# A dump holds no roles, and grants and ownership name these three; as in migration 0002.
ROLES = """
    DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
    GRANT {role} TO CURRENT_USER;
    GRANT USAGE ON SCHEMA public TO {role}
"""


class BackupFailed(ServiceError):
    """A backup could not be taken or restored; nothing may be relied upon that it has left."""

    code = "backup_failed"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds; the content of `manifest.json`."""

    palimpsest: str
    schema: str  # revision of the migrations
    login: str  # who owns the database; a restore logs in under the same name
    taken_at: str
    dump_sha256: str
    artifacts: list[str]  # the hash of everything that must be there for it to be restored
    with_artifacts: bool  # False: the store is kept safe by other means


def take_backup(
    folder: Path,
    *,
    database_url: str,
    artifact_url: str,
    with_artifacts: bool = True,
    secrets: Secrets | None = None,
    say: Say = lambda _line: None,
) -> Manifest:
    """Writes a backup into a new folder while the service runs. `secrets` are those of an embedded installation.

    Raises `BackupFailed` when the folder is not empty, the dump fails or an artifact is missing or damaged.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BackupFailed(f"{folder} is not empty; every backup takes a folder of its own.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # one that was there already may be open to others
    revision, login, artifacts, uploads = _dump(folder / DUMP, database_url=database_url)
    say(f"database  {(folder / DUMP).stat().st_size:,} bytes, schema {revision}")
    if with_artifacts:
        source, target = ArtifactStore(artifact_url), _store_of(folder)
        _copy_artifacts(source, target, artifacts)
        artifacts += [sha256 for sha256 in uploads if _copy_upload(source, target, sha256, say=say)]
        say(f"artifacts {len(artifacts)}")
    if secrets is not None:
        write_private_json(folder / SECRETS, asdict(secrets))
    manifest = Manifest(
        palimpsest=VERSION, schema=revision, login=login, taken_at=datetime.now(UTC).isoformat(),
        dump_sha256=_sha256(folder / DUMP), artifacts=artifacts, with_artifacts=with_artifacts,
    )  # fmt: skip
    write_private_json(folder / MANIFEST, asdict(manifest))
    return manifest


def _dump(target: Path, *, database_url: str) -> tuple[str, str, list[str], list[str]]:
    """Dumps the database; returns schema revision, login, artifacts and waiting uploads as the dump's snapshot has them."""
    target.touch(mode=0o600)
    with _connect(database_url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # Without its rights, row-level security would leave rows out of the dump and say nothing.
        snapshot, login, sees_all = _row(
            connection,
            "SELECT pg_export_snapshot(), current_user, pg_has_role('palimpsest_owner', 'USAGE')",
        )
        if not sees_all:
            raise BackupFailed(f"The login {login} does not inherit the rights of palimpsest_owner.")
        (revision,) = _row(connection, "SELECT version_num FROM alembic_version")
        artifacts = [sha256 for (sha256,) in connection.execute(REFERRED_TO)]
        uploads = [sha256 for (sha256,) in connection.execute(WAITING_UPLOADS) if sha256 not in artifacts]
        arguments = ["--format=custom", "--enable-row-security", f"--snapshot={snapshot}", f"--file={target}"]
        _run("pg_dump", *arguments, database_url=database_url)
    return revision, login, artifacts, uploads


def restore_backup(
    folder: Path, *, database_url: str, artifact_url: str, say: Say = lambda _line: None
) -> Manifest:
    """Puts a backup into an empty database and a store, and brings the schema up to this release's.

    The backup is checked whole before anything is written, and the artifacts are there before the rows that name them.
    Raises `BackupFailed` for a damaged backup, a database that is not empty, or another login.
    """
    manifest = read_manifest(folder)
    store = ArtifactStore(artifact_url)
    _check_dump(folder, manifest)
    _check_target(manifest, database_url=database_url)
    if manifest.with_artifacts:
        _copy_artifacts(_store_of(folder), store, manifest.artifacts)
    else:
        _check_artifacts(store, manifest.artifacts)
    say(f"artifacts {len(manifest.artifacts)}")
    with _connect(database_url) as connection:
        for role in ("palimpsest_owner", "palimpsest_app", "palimpsest_worker"):
            connection.execute(ROLES.format(role=role).encode())
        connection.execute("GRANT CREATE ON SCHEMA public TO palimpsest_owner")
    _run(
        "pg_restore", "--exit-on-error", "--single-transaction", str(folder / DUMP), database_url=database_url
    )
    upgrade(database_url)
    say(f"database  as of {manifest.taken_at}")
    return manifest


def restore_into_state(folder: Path, state: Path, *, say: Say = lambda _line: None) -> Manifest:
    """Makes a new state folder for `palimpsest up` out of a backup: database, artifacts, pepper and first key.

    Raises `BackupFailed` as `restore_backup` does, and when the state folder holds a database already.
    """
    target = StateFolder(state)
    if target.postgres.exists() or target.secrets_file.exists():
        raise BackupFailed(f"{state} holds an installation already; restore into a new folder.")
    _check_dump(folder, read_manifest(folder))
    if not (folder / SECRETS).exists():
        raise BackupFailed(
            f"{folder} holds no {SECRETS}: it was not taken with --state. Restore it to DATABASE_URL."
        )
    target.path.mkdir(mode=0o711, parents=True, exist_ok=True)
    write_private_json(target.secrets_file, json.loads((folder / SECRETS).read_text()))
    with target:
        server = PostgresServer(
            target.postgres,
            logs_dir=target.logs,
            password=target.secrets.postgres_password,
            hold=[target.lock],
        )
        with server:
            return restore_backup(
                folder, database_url=server.url, artifact_url=target.artifacts.as_uri(), say=say
            )


def read_manifest(folder: Path) -> Manifest:
    """What a backup holds. Raises `BackupFailed` where there is none, or one that cannot be read."""
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text()))
    except FileNotFoundError:
        raise BackupFailed(f"{folder} holds no {MANIFEST}: it is no backup, or was not finished.") from None
    except (ValueError, TypeError) as error:
        raise BackupFailed(f"{folder / MANIFEST} cannot be read: {error}") from error


def _check_dump(folder: Path, manifest: Manifest) -> None:
    if not (folder / DUMP).exists() or _sha256(folder / DUMP) != manifest.dump_sha256:
        raise BackupFailed(
            f"{folder / DUMP} is missing or damaged: it does not match its hash in {MANIFEST}."
        )


def _check_target(manifest: Manifest, *, database_url: str) -> None:
    with _connect(database_url) as connection:
        tables, login = _row(
            connection, "SELECT (SELECT count(*) FROM pg_tables WHERE schemaname = 'public'), current_user"
        )
    if tables:
        raise BackupFailed(f"The database holds {tables} tables already; restore into an empty one.")
    if login != manifest.login:
        raise BackupFailed(f"The backup's owner is {manifest.login}; log in under that name, not as {login}.")


def _copy_artifacts(source: ArtifactStore, target: ArtifactStore, hashes: list[str]) -> None:
    """Copies artifacts, each checked while it is read; all that are wrong are named together."""
    wrong = []
    for sha256 in hashes:
        try:
            _copy_artifact(source, target, sha256)
        except ArtifactDamaged as error:
            wrong.append(error.detail)
    if wrong:
        raise BackupFailed(
            f"{len(wrong)} artifacts cannot be copied: {' '.join(wrong[:5])} "
            "One that retention or a purge removed in this moment is no loss: take the backup again."
        )


def _copy_upload(source: ArtifactStore, target: ArtifactStore, sha256: str, *, say: Say) -> bool:
    """Copies the upload of an import that waited at the dump; says so and returns False where it is not there any more."""
    try:
        _copy_artifact(source, target, sha256)
    except ArtifactDamaged:
        say(f"left out  the upload {sha256}: its import has ended meanwhile, or will fail with upload_lost")
        return False
    return True


def _copy_artifact(source: ArtifactStore, target: ArtifactStore, sha256: str) -> None:
    with source.open_verified(sha256) as tar:
        target.put_tar(tar, instead=not _is_whole(target, sha256))


def _check_artifacts(store: ArtifactStore, hashes: list[str]) -> None:
    wrong = [sha256 for sha256 in hashes if not _is_whole(store, sha256)]
    if wrong:
        raise BackupFailed(
            f"The store lacks {len(wrong)} artifacts of this backup, or holds them damaged: {', '.join(wrong[:3])} …"
        )


def _is_whole(store: ArtifactStore, sha256: str) -> bool:
    try:
        store.open_verified(sha256).close()
    except ArtifactDamaged:
        return False
    return True


def _connect(database_url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """Connects to an address in any spelling that the service takes. Raises `BackupFailed`, which names no password."""
    url, password = _address(database_url)
    try:
        return psycopg.connect(url.render_as_string(), password=password)
    except psycopg.OperationalError as error:
        raise BackupFailed(f"No connection to {url.render_as_string()}: {error}") from None


def _address(database_url: str) -> tuple[URL, str | None]:
    """Takes an address apart: where and as whom, and the password, which may stand in front or among the options."""
    url = make_url(database_url)
    options = dict(url.query)
    asked = options.pop("password", None)
    password = url.password or (asked if isinstance(asked, str) else None)
    where = URL.create(
        "postgresql", username=url.username, host=url.host, port=url.port, database=url.database, query=options
    )  # fmt: skip
    return where, password


def _store_of(folder: Path) -> ArtifactStore:
    return ArtifactStore((folder / ARTIFACTS).absolute().as_uri())


def _run(tool: str, *arguments: str, database_url: str) -> None:
    """Runs one of Postgres' programs; the password goes by the environment, where no process list shows it."""
    url, password = _address(database_url)
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    done = subprocess.run(
        [find_tool(tool), f"--dbname={url.render_as_string()}", *arguments],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise BackupFailed(f"{tool} failed: {done.stderr.strip()[-1000:]}")


def _row(connection: psycopg.Connection[Any], query: str) -> tuple[Any, ...]:
    nothing = BackupFailed("The database has not been migrated; there is nothing to back up.")
    try:
        row = connection.execute(query.encode()).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedObject):
        raise nothing from None
    if row is None:
        raise nothing
    return tuple(row)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
