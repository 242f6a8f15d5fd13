"""Listening to an update: nothing lost, nothing twice, an end where the update ends, and a crowd that costs no more than one."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from psycopg import sql
from sqlalchemy import event, make_url, text

from service.app import create_app
from service.config import get_settings
from service.db import engine_for, session_scope
from service.metrics.http import registry
from service.security import revoke_key
from service.server import Server
from service.updates import event_stream, hub, leases
from service.updates.leases import Claim
from tests.event_streams import Stream, listen
from tests.scenes import World, make_client

PATIENCE = 60.0
END_CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"


def until(condition: Callable[[], Any], *, what: str) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for {what}"
        time.sleep(0.02)


def open_streams() -> float:
    return registry.get_sample_value("palimpsest_event_streams") or 0.0


class Api:
    """The API behind a real uvicorn, in a thread of this process."""

    def __init__(self, headers: httpx.Headers) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = Server(uvicorn.Config(create_app(), log_config=None, timeout_graceful_shutdown=10))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.listener.getsockname()[1]}", timeout=PATIENCE,
            headers={"Authorization": headers["Authorization"]}, limits=httpx.Limits(max_connections=None),
        )  # fmt: skip

    def __enter__(self) -> "Api":
        self.thread.start()
        until(lambda: self.server.started, what="the API")
        return self

    def __exit__(self, *_error: object) -> None:
        self.client.close()
        self.stop()

    def stop(self) -> float:
        """Does as SIGTERM does; returns the seconds it took to stop."""
        began = time.monotonic()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return time.monotonic() - began

    def listen(
        self, update_id: str, *, after: int | None = None, **headers: str
    ) -> AbstractContextManager[Stream]:
        """Opens a stream."""
        return listen(self.client, update_id, after=after, **headers)


@pytest.fixture
def api(world: World) -> Iterator[Api]:
    """A served API, a model with a task to learn."""
    world.model()
    world.task("one", train=3, held=2)
    with Api(world.client.headers) as served:
        yield served


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes settings for what concerns streams."""

    def change(**values: object) -> None:
        changed = get_settings().model_copy(update=values)
        for module in (hub, event_stream):
            monkeypatch.setattr(module, "get_settings", lambda: changed)

    return change


def report(claim: Claim, *, step: int) -> None:
    """Writes progress as a worker does."""
    progress = {"phase": "training", "step": step, "total_steps": 100, "loss": 1 / step}
    with session_scope(tenant="acme", role="worker") as session:
        held = leases.renew_lease(session, claim=claim, lease_seconds=30, progress=progress)
    assert held.held


def evaluate(claim: Claim) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        assert leases.begin_evaluating(session, claim=claim)


def fail(claim: Claim) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        assert leases.fail_attempt(session, claim=claim, code="bad_rows", message="no good", final=True)


def stored(world: World, update_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = world.get(f"/updates/{update_id}/events")["data"]
    return events


def test_a_listener_gets_every_event_in_order_as_the_list_has_it_and_the_stream_ends_with_the_update(
    world: World, api: Api
) -> None:
    update = world.request("one")["id"]
    with api.listen(update) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert (stream.response.headers["vary"], stream.response.headers["x-accel-buffering"]) == (
            "Accept",
            "no",
        )
        assert stream.read("retry") == {"retry": "2000"}
        seen = [stream.read("queued")]
        claim = world.claim()
        seen.append(stream.read("training"))
        evaluate(claim)
        seen.append(stream.read("evaluating"))
        fail(claim)
        seen += stream.rest()  # which ends
    assert [json.loads(message["data"]) for message in seen] == stored(world, update)
    assert [(m["id"], m["event"]) for m in seen] == [(str(e["id"]), e["type"]) for e in stored(world, update)]
    until(lambda: open_streams() == 0, what="the listener to leave")


def test_a_client_that_comes_back_misses_nothing_and_gets_nothing_twice(world: World, api: Api) -> None:
    update = world.request("one")["id"]
    with api.listen(update) as stream:
        last = stream.read("queued")
    claim = world.claim()
    evaluate(claim)
    with api.listen(update, after=int(last["id"])) as stream:
        resumed = [stream.read("training"), stream.read("evaluating")]
        fail(claim)
        resumed += stream.rest()
    assert [json.loads(message["data"]) for message in [last, *resumed]] == stored(world, update)
    with api.listen(update, after=int(resumed[-1]["id"])) as stream:
        assert stream.response.status_code == 204  # a browser would come again for ever
    with api.listen(update) as stream:
        assert len(stream.rest()) == 4  # whoever comes late gets it all


def test_progress_comes_without_an_id_and_at_most_once_a_second(world: World, api: Api) -> None:
    update = world.request("one")["id"]
    claim = world.claim()
    report(claim, step=1)
    with api.listen(update) as stream:
        first = stream.read("progress")
        assert (json.loads(first["data"])["step"], "id" in first) == (1, False)
        assert json.loads(first["data"]) == world.update(update)["progress"]
        began = time.monotonic()
        for step in range(2, 60):
            report(claim, step=step)
            time.sleep(0.05)  # a quick worker, not a wait for something
        fail(claim)
        seconds = time.monotonic() - began
        shown = [message for message in stream.messages() if message.get("event") == "progress"]
    steps = [json.loads(message["data"])["step"] for message in shown]
    assert steps == sorted(set(steps))
    assert 1 <= len(steps) <= seconds / hub.LOOK_SECONDS + 1


def test_silence_is_broken_by_comments(world: World, setting: Callable[..., None], api: Api) -> None:
    setting(event_stream_heartbeat_seconds=0.05)
    with api.listen(world.request("one")["id"]) as stream:
        stream.read("queued")
        for message in stream.messages():
            assert message == {"comment": ": ping"}
            if len(stream.comments) == 3:
                break


def test_a_held_candidate_is_not_the_end(world: World, api: Api) -> None:
    update = world.request("one")["id"]
    with api.listen(update) as stream:
        stream.read("queued")
        with session_scope(tenant="acme") as session:  # as the gate leaves it; nothing here trains
            session.execute(
                text("UPDATE updates SET state = 'awaiting_approval' WHERE id = :id"), {"id": update}
            )
        world.ok(world.client.post(f"/v1/updates/{update}/reject"))
        assert [message["event"] for message in stream.rest()] == ["rejected"]


def test_another_tenants_update_is_not_there_and_the_scope_read_is_needed(world: World, api: Api) -> None:
    update = world.request("one")["id"]
    for client, status, code in (
        (make_client("globex"), 404, "update_not_found"),
        (make_client("acme", "train"), 403, "missing_scope"),
    ):
        with api.listen(update, Authorization=client.headers["Authorization"]) as stream:
            stream.response.read()
            assert world.problem(stream.response) == (status, code)


def test_two_tenants_updates_of_one_id_stay_apart(world: World, api: Api) -> None:
    update = world.request("one")["id"]
    other = World(make_client("globex"))
    other.model()
    other.task("one", train=3, held=2)
    take_id(other.request("one")["id"], update)
    with (
        api.listen(update) as mine,
        api.listen(update, Authorization=other.client.headers["Authorization"]) as theirs,
    ):
        mine.read("queued")
        theirs.read("retry")
        other.ok(other.client.post(f"/v1/updates/{update}/cancel"))
        assert [json.loads(message["data"]) for message in theirs.rest()] == stored(other, update)
        world.claim()
        assert json.loads(mine.read("training")["data"]) == stored(world, update)[1]


def take_id(update_id: str, new_id: str) -> None:
    """Gives an update the id of another tenant's; its events so far are lost."""
    with engine_for(get_settings().database_url).begin() as connection:
        connection.execute(text("SET LOCAL ROLE palimpsest_owner"))
        ids = {"old": update_id, "new": new_id}
        connection.execute(text("DELETE FROM update_events WHERE update_id = :old"), ids)
        connection.execute(text("UPDATE updates SET id = :new WHERE id = :old"), ids)


def test_a_revoked_key_ends_its_streams_and_no_others(world: World, api: Api) -> None:
    update = world.request("one")["id"]
    spare = world.ok(world.client.post("/v1/keys", json={"name": "spare", "scopes": ["read"]}))
    with (
        api.listen(update) as mine,
        api.listen(update, Authorization=f"Bearer {spare['api_key']}") as revoked,
    ):
        mine.read("queued")
        revoked.read("queued")
        with session_scope(tenant="acme") as session:
            revoke_key(session, key_id=spare["id"])
        began = time.monotonic()
        assert revoked.rest() == []
        assert time.monotonic() - began < 10
        world.ok(world.client.post(f"/v1/updates/{update}/cancel"))
        assert [message["event"] for message in mine.rest()] == ["cancelled"]


def test_a_secret_that_was_rotated_away_ends_its_streams(world: World, api: Api) -> None:
    update = world.request("one")["id"]
    spare = world.ok(world.client.post("/v1/keys", json={"name": "spare", "scopes": ["read"]}))
    with api.listen(update, Authorization=f"Bearer {spare['api_key']}") as stream:
        stream.read("queued")
        world.ok(world.client.post(f"/v1/keys/{spare['id']}/rotate"))
        assert stream.rest() == []


def test_fifty_listeners_cost_as_many_queries_as_one(world: World, api: Api) -> None:
    update = world.request("one")["id"]
    claim = world.claim()
    with ExitStack() as stack:
        streams = [stack.enter_context(api.listen(update)) for _ in range(50)]
        for stream in streams:
            stream.read("training")
        assert open_streams() == 50
        counted = Counted()
        with counted:
            report(claim, step=1)
            for stream in streams:
                stream.read("progress")
        # A look asks once for keys and once for news; a slow machine may look some more times before all have read.
        looks = counted.seconds / hub.LOOK_SECONDS + 2
        assert counted.news <= looks, (counted.news, counted.seconds)
        assert counted.keys <= looks
        answered = time.monotonic()
        world.ok(api.client.get("/v1/models"))
        assert time.monotonic() - answered < 5
        fail(claim)
        with ThreadPoolExecutor(10) as readers:
            endings = list(readers.map(lambda stream: stream.rest()[-1]["event"], streams))
    assert endings == ["failed"] * 50
    until(lambda: open_streams() == 0, what="the listeners to leave")


class Counted:
    """Counts what looks of the hub ask while it is open."""

    def __enter__(self) -> "Counted":
        self.news = self.keys = 0
        self.began = time.monotonic()
        event.listen(engine_for(get_settings().database_url), "before_cursor_execute", self._count)
        return self

    def __exit__(self, *_error: object) -> None:
        event.remove(engine_for(get_settings().database_url), "before_cursor_execute", self._count)
        self.seconds = time.monotonic() - self.began

    def _count(self, _connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        self.news += "update_events" in statement and "LATERAL" in statement
        self.keys += "find_key" in statement


def test_past_the_limit_a_listener_is_refused_with_a_problem_and_a_place_is_given_back(
    world: World, setting: Callable[..., None], api: Api
) -> None:
    setting(max_event_streams=1)
    update = world.request("one")["id"]
    with api.listen(update) as first:
        first.read("queued")
        with api.listen(update) as second:
            second.response.read()
            assert world.problem(second.response) == (503, "too_many_streams")
            assert second.response.headers["retry-after"] == "2"
        assert world.ok(api.client.get(f"/v1/updates/{update}/events"))["data"]
    until(lambda: open_streams() == 0, what="the listener to leave")
    with api.listen(update) as third:
        third.read("queued")


def test_a_tenant_with_all_the_streams_it_may_have_leaves_room_for_others(
    world: World, setting: Callable[..., None], api: Api
) -> None:
    setting(max_event_streams_per_tenant=1)
    other = World(make_client("globex"))
    other.model()
    other.task("one", train=3, held=2)
    mine, theirs = world.request("one")["id"], other.request("one")["id"]
    with api.listen(mine) as first:
        first.read("queued")
        with api.listen(mine) as second:
            second.response.read()
            assert world.problem(second.response) == (429, "too_many_streams")
            assert second.response.headers["retry-after"] == "2"
        with api.listen(theirs, Authorization=other.client.headers["Authorization"]) as third:
            third.read("queued")


def test_a_stopping_api_ends_its_streams_at_once_and_another_takes_over(world: World, api: Api) -> None:
    update = world.request("one")["id"]
    with api.listen(update) as stream:
        last = stream.read("queued")
        seconds = api.stop()
        assert stream.rest() == []  # an end, not a broken connection
    assert seconds < 8  # uvicorn would wait for 10
    world.claim()
    with Api(world.client.headers) as successor, successor.listen(update, after=int(last["id"])) as stream:
        assert stream.read("training")


def test_a_database_that_is_away_pauses_a_stream(
    world: World, setting: Callable[..., None], api: Api
) -> None:
    setting(event_stream_heartbeat_seconds=0.1)
    update = world.request("one")["id"]
    with api.listen(update) as stream:
        stream.read("queued")
        with no_connections():
            seen = len(stream.comments)
            while len(stream.comments) < seen + 30:  # through some looks that fail
                assert "comment" in next(stream.messages())
        world.ok(world.client.post(f"/v1/updates/{update}/cancel"))
        assert [message["event"] for message in stream.rest()] == ["cancelled"]


@contextmanager
def no_connections() -> Iterator[None]:
    """Ends every connection to the database and lets nobody make another."""
    url = make_url(get_settings().database_url)
    elsewhere = url.set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        named = sql.Identifier(str(url.database))
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(named))
        connection.execute(END_CONNECTIONS, [url.database])
        try:
            yield
        finally:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(named))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("application/json, text/event-stream", "application/json"),
        ("text/event-stream;q=0.5, application/json", "application/json"),
        ("text/event-stream;q=0, */*", "application/json"),
        ("text/event-stream;q=x", "application/json"),
        ("text/html", "application/json"),
        ("text/event-stream, */*", "text/event-stream"),
        ("application/json;q=0.2, Text/Event-Stream", "text/event-stream"),
    ],
)
def test_the_list_is_the_answer_unless_the_stream_is_preferred(accept: str, kind: str) -> None:
    scope = {"type": "http", "headers": [(b"accept", accept.encode())]}
    wanted = event_stream.wants_stream(event_stream.Request(scope))
    assert wanted == (kind == "text/event-stream")
