"""One trace from the POST of an update to its promotion; nothing at all where no endpoint is set."""

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from structlog import get_logger

from service import tracing
from service.config import Settings, get_settings
from service.db import EVERY_TENANT, session_scope
from service.embedded.ports import hold_port
from service.errors import ServiceError
from service.logs import configure_logging
from service.updates.leases import sweep_expired
from tests.logs import plain_lines
from tests.scenes import World, make_client
from tests.service.tracing.collector import Collector, running_collector, values

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Start = Callable[[str], World]


@pytest.fixture
def start(database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts tracing to an endpoint and returns a world whose requests and updates are traced."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds between two batches

    def begin(endpoint: str) -> World:
        settings = get_settings().model_copy(update={"traces_endpoint": endpoint})
        monkeypatch.setattr(tracing, "get_settings", lambda: settings)
        return World(make_client("acme"))

    yield begin
    tracing.stop_tracing()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture
def world(start: Start, collector: Collector) -> World:
    return start(collector.endpoint)


def post_update(world: World, **headers: str) -> dict[str, object]:
    body = {"tasks": ["a"], "training": world.TRAINING, "promotion": "always"}
    return world.ok(world.client.post("/v1/models/triage/updates", json=body, headers=headers))


def request_span(collector: Collector, route: str, method: str = "POST") -> Span:
    collector.wait_for(f"{method} {route}")
    return collector.named(f"{method} {route}")[-1]


def events(span: Span) -> list[str]:
    return [event.name for event in span.events]


def test_one_trace_holds_the_request_the_attempt_its_steps_and_the_promotion(
    world: World, collector: Collector
) -> None:
    world.model()
    world.task("a")
    update = post_update(world)
    world.work()
    attempt = collector.wait_for("update.attempt")
    posted = request_span(collector, "/v1/models/{model}/updates")
    steps = {name: collector.named(name)[0] for name in ("prepare", "train", "store", "evaluate", "record")}
    assert attempt.trace_id == posted.trace_id
    assert attempt.parent_span_id == posted.span_id
    assert events(posted) == ["update.queued"]
    for step in steps.values():
        assert (step.trace_id, step.parent_span_id) == (posted.trace_id, attempt.span_id)
    assert events(steps["record"]) == ["update.promoted"]
    assert values(steps["record"].attributes) | {
        "palimpsest.tenant": "acme", "palimpsest.update": update["id"], "palimpsest.attempt": 1, "palimpsest.fence": 1,
        "palimpsest.version": 1, "palimpsest.state": "promoted", "palimpsest.model": world.get("/models/triage")["id"],
    } == values(steps["record"].attributes)  # fmt: skip
    assert collector.paths == {"/v1/traces"}
    assert collector.resources[0]["service.name"] == "palimpsest-api"


def test_a_callers_own_trace_goes_on(world: World, collector: Collector) -> None:
    world.model()
    world.task("a")
    post_update(world, traceparent=PARENT)
    posted = request_span(collector, "/v1/models/{model}/updates")
    assert posted.trace_id.hex() == PARENT.split("-")[1]
    assert posted.parent_span_id.hex() == PARENT.split("-")[2]


def test_a_callers_wish_not_to_be_traced_holds_for_the_worker(
    world: World, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("a")
    post_update(world, traceparent=PARENT.removesuffix("01") + "00")
    world.client.get("/v1/models/after")
    monkeypatch.setattr("workers.pipeline.prepare_update", failing)
    assert world.work_once()
    tracing.stop_tracing()
    assert request_span(collector, "/v1/models/{model}", "GET")
    assert not collector.named("update.attempt")
    assert not collector.named("POST /v1/models/{model}/updates")


def test_a_second_attempt_lies_in_the_same_trace_and_is_linked_with_the_first(
    world: World, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("a")
    post_update(world)
    monkeypatch.setattr("workers.pipeline.prepare_update", failing)
    world.work_once()
    world.work_once()
    tracing.stop_tracing()
    first, second = collector.named("update.attempt")
    assert first.trace_id == second.trace_id
    assert [link.span_id for link in first.links] == []
    assert [link.span_id for link in second.links] == [first.span_id]
    assert [values(span.attributes)["palimpsest.attempt"] for span in (first, second)] == [1, 2]
    assert first.status.code == Status.STATUS_CODE_ERROR
    assert values(first.attributes)["error.type"] == "internal_error"
    assert events(first) == ["update.queued"]
    assert "private text" not in str(first)


def failing(*_: object, **__: object) -> None:
    raise RuntimeError("private text")


def test_what_a_sweep_or_a_person_does_stands_in_the_updates_own_trace(
    world: World, collector: Collector
) -> None:
    world.model()
    world.task("a")
    update = post_update(world)
    claim = world.claim()
    with session_scope(tenant=claim.tenant, role="worker") as session:
        session.connection().exec_driver_sql("UPDATE updates SET lease_expires_at = now() - interval '1 s'")
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        assert sweep_expired(session) == [claim.update_id]
    world.ok(world.client.post(f"/v1/updates/{update['id']}/cancel", json={}))
    posted = request_span(collector, "/v1/models/{model}/updates")
    asked = request_span(collector, "/v1/updates/{update}/cancel")
    for name in ("update.training", "update.lease_expired", "update.queued", "update.cancelled"):
        assert collector.wait_for(name).trace_id == posted.trace_id
    assert asked.trace_id != posted.trace_id
    assert events(asked) == ["update.cancelled"]
    assert [link.span_id for link in collector.named("update.cancelled")[0].links] == [asked.span_id]


def test_what_was_rolled_back_leaves_no_trace(
    world: World, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("a")

    def refuse(_session: object) -> None:
        raise ServiceError("enough")

    monkeypatch.setattr("service.updates.commands.nudge_after_commit", refuse)
    body = {"tasks": ["a"], "training": world.TRAINING}
    assert world.client.post("/v1/models/triage/updates", json=body).status_code == 500
    posted = request_span(collector, "/v1/models/{model}/updates")
    assert (events(posted), posted.status.code) == ([], Status.STATUS_CODE_ERROR)


def test_probes_are_not_traced_and_query_strings_do_not_leave(world: World, collector: Collector) -> None:
    world.client.get("/livez")
    world.client.delete("/v1/models/none/examples?subject=jane.doe@example.org")
    request_span(collector, "/v1/models/{model}/examples", "DELETE")
    assert not collector.named("GET /livez")
    assert "jane.doe" not in str(collector.spans)


def test_log_lines_of_a_request_name_its_trace(
    world: World, collector: Collector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def speak(*_: object, **__: object) -> None:
        get_logger("test").info("spoken")
        failing()

    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    configure_logging()
    try:
        monkeypatch.setattr("service.registry.queries.get_model", speak)
        world.client.get("/v1/models/any")
    finally:
        plain_lines()
        logging.getLogger().handlers = handlers
        logging.getLogger().setLevel(level)
    span = request_span(collector, "/v1/models/{model}", "GET")
    line = next(json.loads(line) for line in capsys.readouterr().err.splitlines() if "spoken" in line)
    assert (line["trace_id"], line["span_id"]) == (span.trace_id.hex(), span.span_id.hex())


def test_what_the_child_logs_names_the_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from structlog.contextvars import get_contextvars

    bound: list[object] = []
    world.model()
    world.task("a")
    post_update(world, traceparent=PARENT)
    # What is bound here is what the pipe carries to the child.
    monkeypatch.setattr("workers.pipeline._learn", lambda *_: bound.append(get_contextvars()["trace_id"]))
    world.work_once()
    assert bound == [PARENT.split("-")[1]]


@pytest.fixture(params=["away", "silent"])
def useless_endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where nobody listens, or somebody takes connections and never says a word."""
    if request.param == "away":
        with hold_port() as held:  # no listener
            yield f"http://127.0.0.1:{held.getsockname()[1]}"
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_collector_that_does_not_answer_slows_nothing(start: Start, useless_endpoint: str) -> None:
    world = start(useless_endpoint)
    world.model()
    world.task("a")
    post_update(world)
    assert world.claim()
    began = time.monotonic()
    for _ in range(20):
        world.get("/models/triage")
    assert time.monotonic() - began < 10
    began = time.monotonic()
    tracing.stop_tracing()
    assert time.monotonic() - began < 5


def test_without_an_endpoint_nothing_is_traced_stored_or_imported(client: TestClient) -> None:
    world = World(client)
    world.model()
    world.task("a")
    post_update(world, traceparent=PARENT)
    claim = world.claim()
    assert (claim.traceparent, claim.attempt_traceparent) == (None, None)
    code = (
        "import sys, service.app, workers.app; service.app.create_app();"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk.trace', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["PALIMPSEST_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_the_endpoint_has_its_own_name_and_the_standards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().traces_endpoint is None
    monkeypatch.setenv(name, "http://collector:4318")
    assert Settings().traces_endpoint == "http://collector:4318"


def test_a_missing_sdk_costs_the_traces_and_not_the_service(
    start: Start, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setitem(sys.modules, "service.trace_export", None)
    world = start(collector.endpoint)
    assert not tracing.is_on()
    assert world.get("/models")["data"] == []
