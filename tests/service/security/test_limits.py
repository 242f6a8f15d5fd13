"""Limits: rates per key, encoded and deep bodies, storage per tenant."""

import gzip
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from fastapi.testclient import TestClient
from redis import Redis

from service.config import get_settings
from service.embedded import ValkeyServer
from service.rate_limits import RateLimiter, get_rate_limiter
from tests.scenes import World, make_client

Setting = Callable[..., None]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    """Sets settings for one test."""

    def set_(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"PALIMPSEST_{name.upper()}", str(value))
        get_settings.cache_clear()
        get_rate_limiter.cache_clear()

    yield set_
    monkeypatch.undo()
    set_()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey of the test's own, to be taken away."""
    with ValkeyServer(tmp_path / "data", logs_dir=tmp_path, password="own") as server:
        yield server


def test_every_answer_says_how_the_key_stands(client: TestClient, setting: Setting) -> None:
    setting(rate_limit_per_minute=10)
    for path in ("/v1/models", "/v1/models/none"):
        answer = client.get(path)
        assert answer.headers["RateLimit-Policy"] == '"per-key";q=10;w=60'
        assert answer.headers["RateLimit"].startswith('"per-key";r=')
    assert ";r=8;" in answer.headers["RateLimit"]


def test_a_key_over_its_limit_is_429_with_when_to_come_back_and_others_are_not(
    world: World, setting: Setting
) -> None:
    setting(rate_limit_per_minute=3)
    assert [world.client.get("/v1/models").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = world.client.get("/v1/models")
    assert world.problem(refused) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert ";r=0;" in refused.headers["RateLimit"]
    assert make_client("acme").get("/v1/models").status_code == 200


def test_nobody_counts_health_checks_or_strangers(client: TestClient, setting: Setting) -> None:
    setting(rate_limit_per_minute=1)
    assert {client.get("/livez").status_code for _ in range(5)} == {200}
    assert "RateLimit" not in client.get("/readyz").headers
    strange = {"Authorization": client.headers["Authorization"][:-1] + "!"}
    assert {client.get("/v1/models", headers=strange).status_code for _ in range(5)} == {401}
    assert client.get("/v1/models").status_code == 200


def test_limits_can_be_switched_off(client: TestClient, setting: Setting) -> None:
    setting(rate_limit_per_minute=0)
    assert "RateLimit" not in client.get("/v1/models").headers


@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_requests_pass_at_once_and_uncounted_while_redis_is_away(valkey: ValkeyServer, fault: str) -> None:
    limiter = RateLimiter(valkey.url, per_minute=2, timeout_seconds=0.25)
    counted = limiter.hit("key_1")
    assert counted is not None
    assert counted.remaining == 1
    pid = process_of(valkey)
    os.kill(pid, signal.SIGSTOP if fault == "hung" else signal.SIGKILL)
    try:
        started = time.monotonic()
        with structlog.testing.capture_logs() as logs:
            assert [limiter.hit("key_1") for _ in range(50)] == [None] * 50
        assert time.monotonic() - started < 1.5, "one time-out for all of them"
        assert [entry["event"] for entry in logs] == ["rate_limits_off"]
        assert logs[0]["log_level"] == "warning"
    finally:
        if fault == "hung":
            os.kill(pid, signal.SIGCONT)


def test_counting_resumes_when_redis_is_back(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.rate_limits.RETRY_REDIS_AFTER_SECONDS", 0.05)
    limiter = RateLimiter(valkey.url, per_minute=2, timeout_seconds=0.25)
    pid = process_of(valkey)
    os.kill(pid, signal.SIGSTOP)
    assert limiter.hit("key_1") is None
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.1)
    assert limiter.hit("key_1") is not None


def process_of(valkey: ValkeyServer) -> int:
    """The server's process."""
    with Redis.from_url(valkey.url) as redis:
        return int(redis.info("server")["process_id"])


@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/triage/tasks/one/examples", "/v1/keys"])
def test_a_compressed_body_is_415_and_says_what_to_do(world: World, path: str, media_type: str) -> None:
    body = gzip.compress(b'{"text": "a", "label": "b"}')
    headers = {"Content-Encoding": "gzip", "Content-Type": media_type}
    answer = world.client.post(path, content=body, headers=headers)
    assert world.problem(answer) == (415, "unsupported_media_type")
    assert "'gzip' is not read here; send the body uncompressed" in answer.json()["detail"]
    assert answer.headers["Accept-Encoding"] == "identity"


def nested(levels: int) -> str:
    """An object inside an object, and so on."""
    return '{"a":' * levels + "1" + "}" * levels


BODIES = {
    "/v1/models": '{"name":"x","base_model":"minilm-l6","task_type":"text-classification","metadata":%s}',
    "/v1/models/triage/tasks/one/examples": '{"examples":[{"text":"a","label":"b","metadata":%s}]}',
    "/v1/models/triage/updates": '{"tasks":["one"],"strategy":{"name":"replay","fraction":%s}}',
    "/v1/models/triage/rollback": '{"reason":%s}',
    "/v1/keys": '{"name":"x","scopes":%s}',
}


@pytest.mark.parametrize("levels", [151, 900, 5000, 100_000])
def test_bodies_nested_too_deep_are_refused_and_break_nothing(world: World, levels: int) -> None:
    world.model()
    world.ok(world.client.put("/v1/models/triage/tasks/one"))
    for path, body in BODIES.items():
        headers = {"Content-Type": "application/json"}
        answer = world.client.post(path, content=body % nested(levels), headers=headers)
        assert answer.status_code in (400, 422), (path, answer.text[:200])
        assert len(answer.content) < 10_000, path
    row = json.dumps({"text": "a", "label": "b"})[:-1] + f', "metadata": {nested(levels)}}}'
    answer = world.client.post(
        "/v1/models/triage/tasks/one/examples", content=row, headers={"Content-Type": "application/x-ndjson"}
    )
    assert world.problem(answer) == (422, "invalid_examples")
    assert answer.json()["errors"][0]["code"] == "nested_too_deep"


def test_a_tenant_over_its_examples_is_refused_whole_until_it_deletes_some(
    world: World, other_client: TestClient, setting: Setting
) -> None:
    setting(max_examples_per_tenant=3)
    world.model()
    world.ok(world.client.put("/v1/models/triage/tasks/one"))
    path = "/v1/models/triage/tasks/one/examples"
    rows = [{"id": f"r{number}", "text": f"text {number}", "label": "a"} for number in range(5)]
    world.examples("one", rows[:3])
    answer = world.client.post(path, json={"examples": rows[3:]})
    assert world.problem(answer) == (413, "quota_exceeded")
    assert "5 examples; its limit is 3 examples, 2 examples fewer" in answer.json()["detail"]
    assert len(world.get("/models/triage/tasks/one/examples")["data"]) == 3
    assert world.examples("one", rows[:3])["duplicates"] == 3, "what is stored already takes no more room"
    assert world.client.delete(f"{path}/r0").status_code == 204
    assert world.examples("one", rows[3:4])["accepted"] == 1
    other = World(other_client)
    other.model()
    other.ok(other.client.put("/v1/models/triage/tasks/one"))
    assert other.examples("one", rows[:3])["accepted"] == 3, "another tenant has its own"


def test_a_tenant_over_its_bytes_is_refused(world: World, setting: Setting) -> None:
    setting(max_example_bytes_per_tenant=20_000)
    world.model()
    world.ok(world.client.put("/v1/models/triage/tasks/one"))
    small = [{"text": "short", "label": "a"}]
    assert world.examples("one", small)["accepted"] == 1
    large = [{"text": os.urandom(20_000).hex(), "label": "a"}]
    answer = world.client.post("/v1/models/triage/tasks/one/examples", json={"examples": large})
    assert world.problem(answer) == (413, "quota_exceeded")
