"""The whole service on one machine, from one state folder."""

import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from service.config import Settings
from service.embedded.commands import api_command, run_to_end, worker_command
from service.embedded.errors import PartFailed
from service.embedded.ports import LOOPBACK, open_listener
from service.embedded.postgres import PostgresServer
from service.embedded.probes import is_ready, takes_key
from service.embedded.server import EmbeddedServer
from service.embedded.state import Connection, StateFolder
from service.embedded.supervisor import ServicePart, Supervisor
from service.embedded.valkey import ValkeyServer

READY_SECONDS = 60.0
MIGRATION_SECONDS = 600.0
KEY_SECONDS = 60.0
SERVER_MAY_FAIL = 5
FIRST_TENANT = "default"
EVERY_SCOPE = "read,ingest,train,deploy,admin"


class Stack:
    """Postgres, Valkey, the API and workers, started in order and kept running.

    As a context manager it is started and stopped. Where the operator has set `DATABASE_URL`, `REDIS_URL` or
    `ARTIFACT_URL`, that address is used and the embedded part is not started.
    """

    def __init__(
        self,
        state: Path,
        *,
        host: str = LOOPBACK,
        port: int | None = None,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """`port=None` takes a free one; `environment` is added to every process's; `say` receives console lines."""
        self.state = StateFolder(state)
        self.host = host
        self.wanted_workers = workers
        self.postgres: PostgresServer | None = None
        self.valkey: ValkeyServer | None = None
        self.api: ServicePart | None = None
        self.workers: list[ServicePart] = []
        self.environment: dict[str, str] = dict(environment or {})
        self._wanted_port = port
        self._say = say
        self._listener: socket.socket | None = None
        self._supervisor = Supervisor(say=say)

    @property
    def url(self) -> str:
        """Where the API answers on this machine."""
        if self._listener is None:
            raise PartFailed("the API", "was not started yet, so it has no address")
        port = self._listener.getsockname()[1]
        host = {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def api_key(self) -> str:
        """A key of the tenant `default` with every scope; the same after a restart."""
        return self.state.secrets.api_key or ""

    @property
    def database_url(self) -> str:
        """The address of the database in use."""
        return self.environment["DATABASE_URL"]

    @property
    def redis_url(self) -> str:
        """The address of the broker in use."""
        return self.environment["REDIS_URL"]

    def start(self) -> Self:
        """Start everything and return once the API is ready and `connection.json` is written.

        Raises:
            EmbeddedError: the folder is in use, a port is taken, or a part did not start; nothing is left running.
        """
        self.state.open()
        try:
            self._listener = open_listener(self.host, self._wanted_port or 0)
            self.state.announce(self.url)
            self._start_servers()
            self._migrate()
            if not self.api_key:
                self._create_key()
            self._start_services()
            self._supervise()
            self._publish()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop everything in order: workers (they put their updates back), API, Valkey, Postgres."""
        self._supervisor.stop()
        if self._listener is not None:
            self.state.retract()
        for part in self.workers:
            part.ask_to_stop()
        for part in self.workers:
            part.stop()
        for later in (self.api, self.valkey, self.postgres):
            if later is not None:
                later.stop()
        if self._listener is not None:
            self._listener.close()
        self.state.close()

    def kill(self) -> None:
        """End everything at once, as the launcher's death would."""
        self._supervisor.stop()
        for part in (*self.workers, self.api, self.valkey, self.postgres):
            if part is not None:
                part.kill()
        if self._listener is not None:
            self._listener.close()
        self.state.close()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block while the stack runs.

        Raises:
            EmbeddedError: a database or broker kept dying.
        """
        self._supervisor.wait(timeout_seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_servers(self) -> None:
        """Start what the operator did not give an address for, and settle every process's environment."""
        settings, state = Settings(), self.state
        given = settings.model_fields_set
        if "database_url" not in given:
            self.postgres = PostgresServer(
                state.postgres,
                logs_dir=state.logs,
                password=state.secrets.postgres_password,
                hold=[state.lock],
            )
            self._start_server(self.postgres)
        if "redis_url" not in given:
            self.valkey = ValkeyServer(
                state.valkey, logs_dir=state.logs, password=state.secrets.valkey_password, hold=[state.lock]
            )
            self._start_server(self.valkey)
        own = {
            "DATABASE_URL": self.postgres.url if self.postgres else settings.database_url,
            "REDIS_URL": self.valkey.url if self.valkey else settings.redis_url,
            "ARTIFACT_URL": settings.artifact_url if "artifact_url" in given else state.artifacts.as_uri(),
        }
        if "key_pepper" not in given:
            own["PALIMPSEST_KEY_PEPPER"] = state.secrets.key_pepper
        if "work_dir" not in given:
            own["PALIMPSEST_WORK_DIR"] = str(state.work)
        if "spool_dir" not in given:
            own["PALIMPSEST_SPOOL_DIR"] = str(state.spool)
        self.environment = own | self.environment

    def _start_server(self, server: EmbeddedServer) -> None:
        server.start()
        self._say(f"{server.name:<9} {LOOPBACK}:{server.port}")

    def _migrate(self) -> None:
        run_to_end(
            "the migration", ["migrate"], logs=self.state.logs, environment=self.environment,
            timeout_seconds=MIGRATION_SECONDS,
        )  # fmt: skip

    def _create_key(self) -> None:
        arguments = [
            "keys",
            "create",
            "--tenant",
            FIRST_TENANT,
            "--scopes",
            EVERY_SCOPE,
            "--name",
            "first key",
            "--json",
        ]
        printed = run_to_end(
            "the creation of the first API key", arguments, logs=self.state.logs, environment=self.environment,
            timeout_seconds=KEY_SECONDS,
        )  # fmt: skip
        self.state.keep_api_key(json.loads(printed)["api_key"])

    def _start_services(self) -> None:
        if self._listener is None:
            raise PartFailed("the API", "has no socket to listen on")
        logs, environment, hold = self.state.logs, self.environment, [self.state.lock]
        api = api_command(
            listener=self._listener.fileno(),
            announced_in=self.state.connection_file,
            logs=logs,
            environment=environment,
        )
        self.api = ServicePart(api, hold=hold).start()
        for number in range(1, self.wanted_workers + 1):
            worker = worker_command(number, logs=logs, environment=environment)
            self.workers.append(ServicePart(worker, hold=hold).start())
        self._wait_until_ready(self.api)
        self._say(f"{'API':<9} {self.url}  (what it can do: {self.url}/docs)")
        self._say(f"{'Workers':<9} {self.wanted_workers}")

    def _wait_until_ready(self, api: ServicePart) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not is_ready(self.url):
            if not api.running:
                raise PartFailed(
                    "the API", "ended while starting", log=api.log, last_lines=api.process.last_lines()
                )
            if time.monotonic() > deadline:
                what = f"was not ready within {READY_SECONDS:.0f} s ({self.url}/readyz says why)"
                raise PartFailed("the API", what, log=api.log, last_lines=api.process.last_lines())
            time.sleep(0.1)

    def _supervise(self) -> None:
        self._supervisor = Supervisor(say=self._say)
        for server in (self.postgres, self.valkey):
            if server is not None:
                self._supervisor.watch(server, may_fail=SERVER_MAY_FAIL)
        for part in (self.api, *self.workers):
            if part is not None:
                self._supervisor.watch(part)
        self._supervisor.start()

    def _publish(self) -> None:
        # The kept key may be unknown to a database that was given by address or put back from a backup.
        if not takes_key(self.url, self.api_key):
            self._create_key()
        connection = Connection(self.url, self.api_key, self.database_url, self.redis_url)
        self.state.publish(connection)
        self._say(f"{'Key':<9} in {self.state.connection_file}, with the addresses")
        self._say(f"{'Logs':<9} {self.state.logs}")
