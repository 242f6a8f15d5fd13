"""Faults of the broker: whatever becomes of it, an update that was answered with 202 is run, once."""

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from service.embedded import ValkeyServer
from service.queue import QUEUE, RUN_UPDATES, make_celery
from tests.faults.rig import QUICK, SHORT, Part, Rig, until

pytestmark = pytest.mark.slow

BOUND_SECONDS = 10.0  # no call waits longer for a broker; on a quiet machine none takes two seconds


class Broker:
    """A Valkey of a test's own, to be killed, frozen and emptied."""

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server

    def hints(self) -> int:
        """How many messages wait for a worker."""
        with Redis.from_url(self.server.url, socket_timeout=5) as redis:
            return int(redis.llen(QUEUE))  # type: ignore[arg-type]  # redis-py types asynchronous answers along

    def empty(self) -> None:
        """FLUSHALL."""
        with Redis.from_url(self.server.url, socket_timeout=5) as redis:
            redis.flushall()

    def restart_empty(self) -> None:
        """Starts it again on the same port, its data folder gone."""
        shutil.rmtree(self.server.data_dir)
        self.server.start()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the server, which runs below its keeper."""
        keeper = psutil.Process(self.server.process.pid)
        for process in keeper.children(recursive=True):
            process.send_signal(number)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A Valkey that this test may break."""
    with ValkeyServer(tmp_path / "valkey", logs_dir=tmp_path / "logs", password="test") as server:
        made = Broker(server)
        yield made
        with suppress(psutil.NoSuchProcess):
            made.send(signal.SIGCONT)


@pytest.fixture
def rig(database: str, broker: Broker, tmp_path: Path) -> Iterator[Rig]:
    """Processes of its own over the shared Postgres and the breakable broker, an API running, no worker yet."""
    made = Rig(tmp_path, database_url=database, redis_url=broker.server.url)
    try:
        made.start_api()
        yield made
    finally:
        made.end()


def in_time(rig: Rig, *tasks: str, **fields: object) -> str:
    """Posts an update, which must be answered with 202 in bounded time; returns its id."""
    start = time.monotonic()
    update: str = rig.world.request(*tasks, training=QUICK, **fields)["id"]
    assert time.monotonic() - start < BOUND_SECONDS
    return update


def promoted(rig: Rig, update: str) -> dict[str, Any]:
    """Waits for an update's end, which must be its promotion in the first attempt."""
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"]) == ("promoted", 1), ended
    return ended


def idle(worker: Part) -> None:
    """Waits until a worker has connected to the broker."""
    until(lambda: "ready" in worker.log, what="the worker")


def test_updates_queued_while_the_broker_is_killed_and_emptied_are_all_run(rig: Rig, broker: Broker) -> None:
    rig.learnable("one", "two", "three")
    first = in_time(rig, "one")
    assert broker.hints() == 1
    broker.server.kill()
    second = in_time(rig, "two")  # down: still 202
    assert rig.world.client.get("/readyz").json()["checks"]["redis"] != "ok"
    broker.server.start()
    assert broker.hints() == 1, "the hint of the first update was not in the broker's file"
    broker.empty()
    third = in_time(rig, "three")
    broker.server.kill()
    broker.restart_empty()
    assert broker.hints() == 0
    rig.start_worker()
    versions = [promoted(rig, update)["version"] for update in (first, second, third)]
    assert versions == [1, 2, 3]
    rig.check_ledger()


def test_a_hung_broker_delays_no_call_for_long_and_the_update_is_run_when_it_answers(
    rig: Rig, broker: Broker
) -> None:
    rig.learnable("one", "two")
    worker = rig.start_worker()
    idle(worker)
    broker.send(signal.SIGSTOP)
    updates = [in_time(rig, "one"), in_time(rig, "two")]
    start = time.monotonic()
    for _ in range(20):
        assert rig.world.get(f"/updates/{updates[0]}")["status"] == "queued"
    assert time.monotonic() - start < BOUND_SECONDS
    ready = rig.world.client.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["redis"]) == (503, "no answer within 2 s")
    broker.send(signal.SIGCONT)
    for update in updates:
        promoted(rig, update)
    assert worker.status is None
    rig.check_ledger()


def test_a_worker_trains_on_while_the_broker_goes_and_comes_back_empty_and_then_takes_the_next_update(
    rig: Rig, broker: Broker
) -> None:
    rig.learnable("one", "two", "three")
    worker = rig.start_worker()
    first = rig.world.request("one", training=SHORT)["id"]
    before = rig.at(first)["step"]
    broker.server.kill()
    rig.at(first, step=before + 1)  # its lease renewed, its child at work
    broker.restart_empty()
    promoted(rig, first)
    promoted(rig, in_time(rig, "two"))
    # Once more while it is idle: only a consumer that has connected again can hear of the third.
    broker.server.kill()
    third = in_time(rig, "three")
    broker.server.start()
    promoted(rig, third)
    assert worker.status is None
    rig.check_ledger()


def test_many_messages_for_one_update_make_one_version(rig: Rig, broker: Broker) -> None:
    rig.learnable("one")
    workers = [rig.start_worker(), rig.start_worker()]
    for worker in workers:
        idle(worker)
    update = in_time(rig, "one")
    celery = make_celery(broker.server.url)
    for _ in range(30):
        celery.send_task(RUN_UPDATES)
    promoted(rig, update)
    until(lambda: broker.hints() == 0, what="the messages to be taken")
    assert [event["type"] for event in rig.events(update)].count("training") == 1
    assert rig.world.get("/models/triage/versions?limit=10")["data"][-1]["version"] in (0, 1)
    assert [worker.status for worker in workers] == [None, None]
    rig.check_ledger()


def test_stale_and_foreign_messages_do_a_worker_no_harm(rig: Rig, broker: Broker) -> None:
    rig.learnable("one", "two")
    worker = rig.start_worker()
    finished = in_time(rig, "one")
    promoted(rig, finished)
    celery = make_celery(broker.server.url)
    celery.send_task(RUN_UPDATES)  # stale: there is nothing to run
    celery.send_task(RUN_UPDATES, args=[finished], kwargs={"of": "an older release"})
    celery.send_task("palimpsest.unknown", args=[1])
    celery.send_task(RUN_UPDATES, expires=-60)
    until(lambda: broker.hints() == 0, what="the messages to be taken")
    promoted(rig, in_time(rig, "two"))
    assert rig.world.update(finished)["version"] == 1
    assert worker.status is None
    rig.check_ledger()
