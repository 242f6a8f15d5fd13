"""Request ids: taken or made, sent back, in problems, in log lines and on updates."""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session
from structlog import get_logger
from structlog.contextvars import get_contextvars

from service.errors import ServiceError
from service.logs import configure_logging
from service.models import UpdateState
from service.updates.leases import LeaseState
from tests.logs import plain_lines
from tests.scenes import World
from workers import lease, pipeline


def test_a_fit_request_id_comes_back_and_stands_in_the_problem(client: TestClient) -> None:
    answer = client.get("/v1/models/none", headers={"X-Request-Id": "trace-17"})
    assert answer.headers["X-Request-Id"] == "trace-17"
    assert answer.json()["request_id"] == "trace-17"


@pytest.mark.parametrize("given", ["", "with blank", "x" * 129, 'quote"', "naïve".encode()])
def test_an_unfit_request_id_is_replaced(client: TestClient, given: str | bytes) -> None:
    answer = client.get(
        "/livez", headers=[(b"X-Request-Id", given if isinstance(given, bytes) else given.encode())]
    )
    assert answer.headers["X-Request-Id"].startswith("req_")


def test_two_requests_get_different_ids(client: TestClient) -> None:
    first, second = (client.get("/livez").headers["X-Request-Id"] for _ in range(2))
    assert first != second


def test_an_unexpected_error_names_its_request_once(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("service.registry.queries.get_model", fail)
    answer = client.get("/v1/models/any", headers={"X-Request-Id": "trace-18"})
    assert answer.status_code == 500
    assert answer.json()["request_id"] == "trace-18"
    assert answer.headers.get_list("X-Request-Id") == ["trace-18"]


@contextmanager
def logs_as_in_production() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    configure_logging()
    try:
        yield
    finally:
        plain_lines()
        logging.getLogger().handlers = handlers
        logging.getLogger().setLevel(level)


def test_log_lines_of_a_request_name_it_its_tenant_and_its_key(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def speak(*_: object, **__: object) -> None:
        get_logger("test").info("spoken")
        raise ServiceError("enough")

    monkeypatch.setattr("service.registry.queries.get_model", speak)
    with logs_as_in_production():
        client.get("/v1/models/any", headers={"X-Request-Id": "trace-19"})
    line = next(json.loads(line) for line in capsys.readouterr().err.splitlines() if "spoken" in line)
    prefix = client.headers["Authorization"].split("_")[1]
    assert (line["request_id"], line["tenant"], line["key_prefix"]) == ("trace-19", "acme", prefix)
    assert client.headers["Authorization"].split("_")[2] not in json.dumps(line)


def test_a_traceback_in_the_log_quotes_no_row_of_the_database(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "Anna\nof Green Gables"

    def break_a_constraint(session: Session, **_: object) -> None:
        session.execute(text("CREATE TEMPORARY TABLE people (name text UNIQUE) ON COMMIT DROP"))
        session.execute(text("INSERT INTO people VALUES (:name), (:name)"), {"name": name})

    monkeypatch.setattr("service.registry.queries.get_model", break_a_constraint)
    with logs_as_in_production():
        assert client.get("/v1/models/any").status_code == 500
    logged = capsys.readouterr().err
    assert "UniqueViolation" in logged
    assert "Anna" not in logged
    assert "Gables" not in logged
    assert "(a row, withheld)" in logged


def test_an_update_carries_the_id_of_its_request_to_the_worker(world: World) -> None:
    world.model()
    world.task("a")
    body = {"tasks": ["a"], "training": world.TRAINING}
    update = world.client.post(
        "/v1/models/triage/updates", json=body, headers={"X-Request-Id": "trace-20"}
    ).json()
    events = world.get(f"/updates/{update['id']}/events")["data"]
    assert update["request_id"] == "trace-20"
    assert events[0]["data"]["request_id"] == "trace-20"
    assert world.claim().request_id == "trace-20"


def test_everything_a_worker_logs_about_an_update_names_it_its_attempt_and_its_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("a")
    body = {"tasks": ["a"], "training": world.TRAINING}
    world.client.post("/v1/models/triage/updates", json=body, headers={"X-Request-Id": "trace-21"})
    claim, seen = world.claim(), []
    noted = threading.Event()

    def renew(*_: object, **__: object) -> LeaseState:  # runs in the thread of the lease
        seen.append(get_contextvars())
        noted.set()
        return LeaseState(held=True, cancel_requested=False)

    def learn(*_: object) -> UpdateState:
        seen.append(get_contextvars())
        assert noted.wait(10)
        return UpdateState.REJECTED

    monkeypatch.setattr(lease, "renew_lease", renew)
    monkeypatch.setattr(pipeline, "_learn", learn)
    pipeline.run_update(claim, stopping=threading.Event())
    expected = {
        "tenant": "acme",
        "update": claim.update_id,
        "attempt": 1,
        "fence": 1,
        "request_id": "trace-21",
    }
    assert seen[:2] == [expected, expected]
    assert get_contextvars() == {}
