"""A rig for faults: real API and worker processes that a test starts, kills, freezes and arms with failpoints."""

import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from sqlalchemy import text

from service.db import engine_for, session_scope
from service.embedded.ports import hold_port
from service.embedded.server import EmbeddedServer
from service.security import create_key
from tests.faults import warm
from tests.faults.warm import ROOT
from tests.scenes import ALL_SCOPES, World

FINISHED = {"promoted", "rejected", "failed", "cancelled"}
LEASE_SECONDS = 3.0
LONG = {"epochs": 400, "max_length": 32, "batch_size": 8, "seed": 1}  # minutes: a fault meets it at work
SHORT = {**LONG, "epochs": 12}  # seconds: long enough for that, and it ends
QUICK = {**LONG, "epochs": 1, "max_length": 16}  # where only the end matters


def until(condition: Callable[[], Any], *, seconds: float = 240.0, every: float = 0.1, what: str) -> Any:
    """Polls until the condition gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(every)
    return found


class Part:
    """A process in a group of its own, its output in a file."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: dict[str, str],
        log: Path,
        anew: bool = False,
    ) -> None:
        """`arguments` are those of `palimpsest`; `anew` gives it a new interpreter."""
        self.name = name
        self.log_file = log
        log.touch()
        self._process = warm.start(arguments, environment=environment, log=log, anew=anew)

    @property
    def pid(self) -> int:
        """The process's id, which is also its group's."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status (negative: the signal); `None` while the process lives."""
        return self._process.exitcode

    @property
    def log(self) -> str:
        """Everything it has written so far."""
        return self.log_file.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone."""
        if self.status is None:
            os.kill(self.pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """Sends a signal to the process and all its descendants, as a terminal or a service manager does."""
        os.killpg(self.pid, number)

    def gone(self, *, seconds: float = 30.0) -> int:
        """Waits for its end; returns the exit status (negative: the signal)."""
        self._process.join(seconds)
        assert self.status is not None, f"{self.name} still runs after {seconds:g} s"
        return self.status

    def descendants(self) -> list[psutil.Process]:
        """Every living process below it."""
        return psutil.Process(self.pid).children(recursive=True)

    def training_child(self) -> psutil.Process:
        """The child of the fork server, which is the one that trains."""

        def find() -> psutil.Process | None:
            for server in psutil.Process(self.pid).children():
                for child in server.children():
                    return child
            return None

        found: psutil.Process = until(find, what="a training child")
        return found

    def end(self) -> None:
        """Kills what is left of the group."""
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                break
        self.gone()


class Rig:
    """One Postgres, one Valkey, one artifact folder, and any number of API and worker processes over them."""

    def __init__(
        self, folder: Path, *, database_url: str, redis_url: str, servers: Sequence[EmbeddedServer] = ()
    ) -> None:
        """`servers` are those that belong to this rig alone, Postgres first: a test may break them."""
        self.folder = folder
        self.database_url = database_url
        self.artifacts = folder / "artifacts"
        self.work = folder / "work"
        self.servers = list(servers)
        self.parts: list[Part] = []
        self.clients: list[httpx.Client] = []  # one of each API process
        self._ports = ExitStack()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "ARTIFACT_URL": self.artifacts.as_uri(),
            "PALIMPSEST_WORK_DIR": str(self.work),
            "PALIMPSEST_LEASE_SECONDS": str(LEASE_SECONDS),
            "PALIMPSEST_SWEEP_SECONDS": "0.5",
            "PALIMPSEST_CHECKPOINT_SECONDS": "0.5",
        }
        with session_scope(tenant="acme", database_url=database_url) as session:
            _, self.key = create_key(session, tenant="acme", scopes=ALL_SCOPES, name="rig")
        self.world: World

    def start_api(self, **environment: str) -> httpx.Client:
        """Starts one more API process and returns a client of it; `world` speaks with the newest."""
        port = self._ports.enter_context(hold_port()).getsockname()[1]
        part = self._start("api", ["api", "--port", str(port)], environment)
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {self.key}"}, timeout=60
        )
        until(lambda: part.status is not None or _alive(client), what="the API")
        assert part.status is None, part.log
        self.clients.append(client)
        self.world = World(client)  # type: ignore[arg-type]  # a TestClient is an httpx client, and World needs no more
        return client

    def start_worker(self, *, anew: bool = False, concurrency: int = 1, **environment: str) -> Part:
        """Starts one more worker and returns it; it may not have connected yet."""
        number = sum(part.name.startswith("worker") for part in self.parts) + 1
        name = f"worker-{number}"
        arguments = ["worker", "--name", name, "--concurrency", str(concurrency)]
        return self._start(name, arguments, environment, anew=anew)

    def start_sweeper(self, *, anew: bool = False, **environment: str) -> Part:
        """Starts a process that only sweeps and returns it."""
        return self._start("sweeper", ["sweeper"], environment, anew=anew)

    def _start(
        self, name: str, arguments: Sequence[str], environment: dict[str, str], *, anew: bool = False
    ) -> Part:
        part = Part(
            name,
            arguments,
            environment={**self.environment, **environment},
            log=self.folder / f"{name}-{len(self.parts)}.log",
            anew=anew,
        )
        self.parts.append(part)
        return part

    def armed(self, failpoints: str) -> dict[str, str]:
        """The environment that arms failpoints, each of which fires once in this rig's life."""
        once = self.folder / "failpoints"
        once.mkdir(exist_ok=True)
        return {"PALIMPSEST_FAILPOINTS": failpoints, "PALIMPSEST_FAILPOINTS_ONCE": str(once)}

    @property
    def api(self) -> Part:
        """The newest API process."""
        return next(part for part in reversed(self.parts) if part.name == "api")

    def learnable(self, *tasks: str) -> None:
        """Makes the model `triage` with tasks to learn."""
        self.world.model()
        subjects = (("math", "os"), ("random", "socket"), ("string", "shutil"))
        for task, labels in zip(tasks, subjects, strict=False):
            self.world.task(task, labels)

    def add_version(self, number: int) -> None:
        """Gives the model `triage` a version that nobody trained: a row for aliases to point at."""
        self.sql(
            "INSERT INTO versions (tenant_id, model_id, number, parent, lineage, parameters, training, cut, labels,"
            " statistics, provenance)"
            " SELECT tenant_id, id, :number, 0, ARRAY[0, :number], '{}', '{}', 1, '[]', '{}', '{}' FROM models"
            " WHERE name = 'triage'",
            number=number,
        )
        self.sql("UPDATE models SET last_version = :number WHERE name = 'triage'", number=number)

    def at(self, update_id: str, phase: str = "training", *, step: int = 1) -> dict[str, Any]:
        """Waits until an update has come to a step of a phase, and returns its progress."""

        def there() -> dict[str, Any] | None:
            update = self.world.update(update_id)
            assert update["status"] not in FINISHED, update
            progress: dict[str, Any] | None = update["progress"]
            return progress if progress and progress["phase"] == phase and progress["step"] >= step else None

        found: dict[str, Any] = until(there, what=f"{phase} step {step}")
        return found

    def ended(self, update_id: str, *, seconds: float = 400.0) -> dict[str, Any]:
        """Waits until an update is finished or held, and returns it."""

        def over() -> dict[str, Any] | None:
            update = self.world.update(update_id)
            return update if update["status"] in {*FINISHED, "awaiting_approval"} else None

        found: dict[str, Any] = until(over, seconds=seconds, every=0.4, what="the update's end")
        return found

    def events(self, update_id: str) -> list[dict[str, Any]]:
        """The log of an update's life, oldest first."""
        events: list[dict[str, Any]] = self.world.get(f"/updates/{update_id}/events")["data"]
        return events

    def sql(self, statement: str, **values: object) -> list[Any]:
        """Runs SQL as the owner, from whom row-level security hides nothing; returns the rows."""
        with engine_for(self.database_url).begin() as connection:
            connection.execute(text("SET LOCAL ROLE palimpsest_owner"))
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    @contextmanager
    def locked(self, statement: str) -> Iterator[None]:
        """Holds the locks that a statement takes, for as long as the block runs."""
        with engine_for(self.database_url).begin() as connection:
            connection.execute(text("SET LOCAL ROLE palimpsest_owner"))
            connection.execute(text(statement))
            yield

    def check_ledger(self) -> None:
        """Asserts what must hold after any fault: see each line."""
        assert (
            self.sql(
                "SELECT update_id FROM versions WHERE update_id IS NOT NULL GROUP BY update_id HAVING count(*) > 1"
            )
            == []
        ), "an update with two versions"
        assert (
            self.sql(
                "SELECT model_id FROM versions WHERE number > 0 GROUP BY model_id"
                " HAVING count(*) <> max(number) OR min(number) <> 1"
            )
            == []
        ), "version numbers with a gap"
        assert (
            self.sql(
                "SELECT update_id FROM update_events WHERE type IN ('promoted', 'rejected', 'failed', 'cancelled')"
                " GROUP BY update_id HAVING count(*) > 1"
            )
            == []
        ), "an update that ended twice"
        assert (
            self.sql(
                "SELECT a.model_id FROM aliases a LEFT JOIN versions v ON v.model_id = a.model_id AND v.number = a.version"
                " WHERE v.model_id IS NULL"
            )
            == []
        ), "an alias of a version that is not there"

    def end(self) -> None:
        """Kills every process; leaves nothing behind."""
        self._ports.close()
        for part in reversed(self.parts):
            part.end()
        for server in self.servers:
            server.kill()
            server.stop()  # gives up its port


class Beside(ABC):
    """Something that goes on in a thread for as long as the block runs; its `_run` looks at `_stopping`."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Goes on until `_stopping` is set."""


def _alive(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False
