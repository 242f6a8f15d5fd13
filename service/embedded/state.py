"""The state folder: everything one embedded installation keeps, under one lock."""

import fcntl
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Self

from service.embedded.errors import StateFolderLocked, StateFolderUnusable

# After `kill -9` of a launcher its keepers hold the lock until the last process is gone.
LOCK_PATIENCE_SECONDS = 15.0
ROOMS = ("artifacts", "logs", "work", "spool")


@dataclass(frozen=True, slots=True)
class Secrets:
    """What must survive a restart and stay private."""

    postgres_password: str
    valkey_password: str
    key_pepper: str
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """What a client of this installation needs; the content of `connection.json`."""

    url: str
    api_key: str
    database_url: str
    redis_url: str


class StateFolder:
    """A locked state folder. As a context manager it is opened and closed."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.artifacts, self.logs, self.work, self.spool = (self.path / name for name in ROOMS)
        self.postgres = self.path / "postgres"
        self.valkey = self.path / "valkey"
        self.connection_file = self.path / "connection.json"
        self.secrets_file = self.path / "secrets.json"
        self.lock_file = self.path / "lock"
        self._lock: int | None = None
        self._secrets: Secrets | None = None

    def open(self) -> Self:
        """Lock the folder, made where missing, and read or make its secrets.

        Raises:
            StateFolderLocked: another launcher lives on it.
            StateFolderUnusable: it cannot be written, or its secrets are damaged or lost.
        """
        try:
            # Others may pass through but not look: as root, Postgres may have to run as another user.
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self.connection_file.unlink(missing_ok=True)
            for name in ROOMS:
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
            self._secrets = self._load_secrets()
        except OSError as error:
            self.close()
            raise StateFolderUnusable(self.path, error.strerror or str(error)) from error
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Give the folder up. The lock is free once the last process that holds it has ended."""
        if self._lock is not None:
            self.connection_file.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lock(self) -> int:
        """The descriptor that carries the lock, for the keepers to hold as well."""
        if self._lock is None:
            raise StateFolderUnusable(self.path, "it is not open")
        return self._lock

    @property
    def secrets(self) -> Secrets:
        """The secrets of this installation."""
        if self._secrets is None:
            raise StateFolderUnusable(self.path, "it is not open")
        return self._secrets

    def keep_api_key(self, api_key: str) -> None:
        """Remember the first API key, so that a restart hands out the same one."""
        self._secrets = replace(self.secrets, api_key=api_key)
        write_private_json(self.secrets_file, asdict(self._secrets))

    def announce(self, url: str) -> None:
        """Note where this installation listens, for the message that refuses a second launcher."""
        text = json.dumps({"pid": os.getpid(), "url": url})
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, text.encode(), 0)

    def publish(self, connection: Connection) -> None:
        """Write `connection.json`: whoever sees it can use the service."""
        write_private_json(self.connection_file, asdict(connection))

    def retract(self) -> None:
        """Remove `connection.json`."""
        self.connection_file.unlink(missing_ok=True)

    def _take_lock(self) -> int:
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        try:
            while not _try_lock(descriptor):
                pid, url = _holder(descriptor)
                if pid is None or _is_alive(pid) or time.monotonic() > deadline:
                    raise StateFolderLocked(self.path, pid=pid, url=url)
                time.sleep(0.1)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "url": None}).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _load_secrets(self) -> Secrets:
        if self.secrets_file.exists():
            return _read_secrets(self.secrets_file)
        if self.postgres.exists():
            raise StateFolderUnusable(
                self.secrets_file,
                "it is missing, and without it the database beside it cannot be opened; put it back",
            )
        made = Secrets(*(secrets.token_urlsafe(24) for _ in range(3)))
        write_private_json(self.secrets_file, asdict(made))
        return made


def read_running(folder: Path) -> tuple[Connection, Secrets]:
    """The addresses and secrets of the `palimpsest up` that runs on a state folder.

    Raises:
        StateFolderUnusable: nothing runs there, or its files cannot be read.
    """
    state = StateFolder(folder)
    try:
        connection = Connection(**json.loads(state.connection_file.read_text()))
    except FileNotFoundError:
        raise StateFolderUnusable(
            state.connection_file, f"it is not there; start `palimpsest up --state {folder}` first"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise StateFolderUnusable(state.connection_file, str(error)) from error
    return connection, _read_secrets(state.secrets_file)


def write_private_json(path: Path, content: object) -> None:
    """Replace a file by JSON that only the owner may read; readers see the old or the new content, never a part."""
    write_private_text(path, json.dumps(content, indent=2) + "\n")


def write_private_text(path: Path, text: str) -> None:
    """Replace a file by a text that only the owner may read; readers see the old or the new content, never a part."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_secrets(path: Path) -> Secrets:
    known = {field.name for field in fields(Secrets)}
    try:
        content = json.loads(path.read_text())
        return Secrets(**{name: value for name, value in content.items() if name in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise StateFolderUnusable(path, f"it is damaged ({error}); restore it from a backup") from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> tuple[int | None, str | None]:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return int(content["pid"]), content["url"]
    except (ValueError, KeyError, TypeError):
        return None, None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
