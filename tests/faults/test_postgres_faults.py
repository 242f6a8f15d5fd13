"""Faults of Postgres: what was acknowledged is kept, nothing is done twice, and everybody comes back by themselves."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from service.embedded.server import EmbeddedServer
from tests.faults.rig import LONG, Beside, Rig, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SHORT = {**LONG, "epochs": 20}
BOUND_SECONDS = 30.0  # a ping and a connection of 5 s each, twice, and room for a busy machine


def postmaster(server: EmbeddedServer) -> psutil.Process:
    """The server's own process, below its keeper."""
    found: psutil.Process = psutil.Process(server.process.pid).children()[0]
    return found


def backends(rig: Rig) -> list[int]:
    """The process ids of the service's connections."""
    rows = rig.sql(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'palimpsest' AND pid <> pg_backend_pid()"
    )
    return [row.pid for row in rows]


@contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    """Postgres with all its processes stands still."""
    # The postmaster first: it would start new backends.
    everybody = [main := postmaster(server), *main.children(recursive=True)]
    for process in everybody:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in everybody:
            process.send_signal(signal.SIGCONT)


class Caller(Beside):
    """A client that goes on through faults: it sends each request, with a key of its own, until it is acknowledged."""

    def __init__(self, client: httpx.Client) -> None:
        super().__init__()
        self._client = client
        self.rounds = 0
        self.updates: dict[str, str] = {}  # what the caller calls it: the id it was given
        self.wrong: list[str] = []

    def _run(self) -> None:
        while not self._stopping.is_set() and not self.wrong:
            try:
                self._round(str(self.rounds + 1))
            except (AssertionError, httpx.TransportError) as error:
                self.wrong.append(repr(error))  # only Postgres was hurt: the API has to answer, and to say so

    def _round(self, name: str) -> None:
        row = {"id": f"row-{name}", "text": f"the text number {name}", "label": "os", "split": "train"}
        self._send("/v1/models/quick/tasks/two/examples", {"examples": [row]}, key=f"rows-{name}")
        wanted = {"tasks": ["two"], "promotion": "manual", "metadata": {"name": name}}
        self.updates[name] = self._send("/v1/models/quick/updates", wanted, key=f"update-{name}")["id"]
        to = 1 - int(name) % 2  # there and back
        self._send("/v1/models/quick/rollback", {"to": to, "reason": f"round {name}"}, key=f"rollback-{name}")
        self.rounds += 1

    def _send(self, path: str, body: dict[str, Any], *, key: str) -> dict[str, Any]:
        def acknowledged() -> dict[str, Any] | None:
            answer = self._client.post(path, json=body, headers={"Idempotency-Key": key})
            assert answer.is_success or answer.status_code in (409, 503), answer.text
            return answer.json() if answer.is_success else None

        found: dict[str, Any] = until(acknowledged, what=path)
        return found


def restart_fast(server: EmbeddedServer, _rig: Rig) -> None:
    postmaster(server).send_signal(signal.SIGINT)
    start_again(server)


def restart_immediately(server: EmbeddedServer, _rig: Rig) -> None:
    postmaster(server).send_signal(signal.SIGQUIT)
    start_again(server)


def kill_the_postmaster(server: EmbeddedServer, _rig: Rig) -> None:
    postmaster(server).send_signal(signal.SIGKILL)
    start_again(server)


def kill_a_backend(_server: EmbeddedServer, rig: Rig) -> None:
    psutil.Process(backends(rig)[0]).send_signal(
        signal.SIGKILL
    )  # Postgres ends the others and recovers by itself


def start_again(server: EmbeddedServer) -> None:
    assert server.process.wait(30)
    server.start()


def test_nothing_acknowledged_is_lost_or_doubled_when_postgres_dies_while_an_update_trains(
    breakable: Rig,
) -> None:
    rig, server = breakable, breakable.servers[0]
    worker = rig.start_worker(PALIMPSEST_LEASE_SECONDS="30")
    rig.learnable("one")
    rig.world.model("quick")
    rig.world.task("two", model="quick")
    rig.ended(rig.world.request("two", model="quick")["id"])
    update = rig.world.request("one", training=SHORT)["id"]
    rig.at(update)
    with Caller(rig.world.client) as caller:
        for fault in (restart_fast, restart_immediately, kill_the_postmaster, kill_a_backend):
            start = caller.rounds
            until(lambda start=start: caller.wrong or caller.rounds > start, what="a round before the fault")
            fault(server, rig)
            start = caller.rounds
            until(
                lambda start=start: caller.wrong or caller.rounds > start + 1, what="a round after the fault"
            )
            assert not caller.wrong
    rows = rig.sql(
        "SELECT external_id FROM examples WHERE external_id LIKE 'row-%' AND superseded_batch IS NULL"
    )
    assert sorted(row.external_id for row in rows) == sorted(f"row-{n}" for n in range(1, caller.rounds + 1))
    asked = rig.sql("SELECT metadata ->> 'name' AS name, id FROM updates WHERE metadata ? 'name'")
    assert sorted((row.name, row.id) for row in asked) == sorted(caller.updates.items())
    moves = rig.sql("SELECT reason FROM alias_moves WHERE kind = 'rolled_back' ORDER BY id")
    assert [row.reason for row in moves] == [f"round {n}" for n in range(1, caller.rounds + 1)]
    ended = rig.ended(update, seconds=300)
    assert (ended["status"], ended["version"]) == ("promoted", 1)
    assert (worker.status, rig.api.status) == (None, None)
    rig.check_ledger()


CALLS: dict[str, Callable[[httpx.Client, str], httpx.Response]] = {
    "read": lambda client, update: client.get(f"/v1/updates/{update}"),
    "list": lambda client, _: client.get("/v1/models"),
    "ingest": lambda client, _: client.post(
        "/v1/models/triage/tasks/one/examples", json={"examples": [{"text": "late", "label": "os"}]}
    ),
    "update": lambda client, _: client.post("/v1/models/triage/updates", json={"tasks": ["one"]}),
    "rollback": lambda client, _: client.post("/v1/models/triage/rollback", json={"reason": "hung"}),
}


def test_a_hung_postgres_holds_nobody_up_and_everybody_goes_on_when_it_does(breakable: Rig) -> None:
    rig, server = breakable, breakable.servers[0]
    client = rig.world.client
    rig.start_worker(**rig.armed("before_record=sleep:2"))
    rig.learnable("one")
    update = rig.world.request("one", training=SHORT)["id"]
    rig.at(update)

    with frozen(server), ThreadPoolExecutor(60) as callers:
        # More at once than the API has threads: they must not pile up behind each other.
        pending = [callers.submit(timed, call, client, update) for _ in range(12) for call in CALLS.values()]
        assert_watched(client)
        for seconds, answer in (one.result() for one in pending):
            assert rig.world.problem(answer) == (503, "database_unavailable")
            assert answer.headers["Retry-After"]
            assert seconds < BOUND_SECONDS
        assert_watched(client)
    until(lambda: client.get(f"/v1/updates/{update}").is_success, seconds=20, what="the API's recovery")
    assert client.get("/readyz").json()["checks"]["postgres"] == "ok"

    # The lease ran out meanwhile. The next attempt meets the fault with its version written and not committed.
    until((rig.folder / "failpoints" / "before_record").exists, what="the recording")
    with frozen(server):
        until(lambda: "ServerSilent" in rig.parts[-1].log, what="the worker to give up")
    ended = rig.ended(update, seconds=300)
    assert (ended["status"], ended["version"]) == ("promoted", 1)
    rig.check_ledger()


def timed(
    call: Callable[[httpx.Client, str], httpx.Response], client: httpx.Client, update: str
) -> tuple[float, httpx.Response]:
    """How long the answer took, and the answer."""
    start = time.monotonic()
    answer = call(client, update)
    return time.monotonic() - start, answer


def assert_watched(client: httpx.Client) -> None:
    """While Postgres hangs, the API says what ails it to those who ask without needing the database."""
    assert client.get("/livez", timeout=10).status_code == 200
    ready = client.get("/readyz", timeout=10)
    assert ready.status_code == 503
    assert ready.json()["checks"]["postgres"] == "no answer within 2 s"
    metrics = client.get("/metrics", timeout=10)
    assert metrics.status_code == 200
    assert 'palimpsest_scrape_errors_total{part="database"}' in metrics.text
