"""GET /metrics: what it counts, what it keeps to itself, and what it does when the database hangs."""

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.config import Settings, get_settings
from service.db import EVERY_TENANT, session_scope
from service.models import UpdateState
from service.updates.leases import begin_evaluating, fail_attempt, renew_lease, sweep_expired
from service.updates.states import change_state
from tests.scenes import World
from workers.training.contract import Progress

Key = tuple[str, tuple[tuple[str, str], ...]]
Scrape = Callable[[], dict[Key, float]]


@pytest.fixture
def scrape(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Scrape:
    """Reads /metrics without a key, into values by name and sorted labels."""
    from service.metrics import routes
    from service.metrics.database import DatabaseReader

    monkeypatch.setattr(routes, "reader", DatabaseReader())

    def read() -> dict[Key, float]:
        answer = client.get("/metrics", headers={"Authorization": ""})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    return read


def value(values: dict[Key, float], name: str, **labels: str) -> float:
    return values.get((name, tuple(sorted(labels.items()))), 0.0)


def configure(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    settings = get_settings().model_copy(update=changes)
    for module in ("service.metrics.routes", "service.metrics.database"):
        monkeypatch.setattr(f"{module}.get_settings", lambda: settings)


def test_requests_are_counted_by_route_template_and_never_by_path(client: TestClient, scrape: Scrape) -> None:
    before = scrape()
    labels = {"method": "GET", "route": "/v1/models/{model}"}
    client.get("/v1/models/secret-name")
    client.get("/v1/no/such/path-of-secret-name")
    after = scrape()
    assert value(after, "http_requests_total", **labels, status="404") == 1 + value(
        before, "http_requests_total", **labels, status="404"
    )
    assert value(after, "http_request_duration_seconds_count", **labels) >= 1
    assert value(after, "http_requests_total", method="GET", route="unmatched", status="404") >= 1
    assert "secret-name" not in str(after.keys())


def test_slashes_within_a_parameter_make_no_new_series_and_show_no_name(
    client: TestClient, scrape: Scrape
) -> None:
    path = "/v1/models/secret-name/tasks/hidden/examples/a/b/c/d/e/f/g"
    client.get(path, headers={"Authorization": "none"})
    labels = {
        key for key in scrape() if "secret-name" in str(key) or "a/b" in str(key) or "examples/a" in str(key)
    }
    assert labels == set()


def test_queue_states_and_storage_are_those_of_the_database(world: World, scrape: Scrape) -> None:
    world.model()
    world.task("a")
    world.request("a")
    world.request("a")
    claim = world.claim()
    values = scrape()
    assert value(values, "palimpsest_updates", state="queued") == 1
    assert value(values, "palimpsest_updates", state="training") == 1
    assert value(values, "palimpsest_updates", state="promoted") == 0
    assert value(values, "palimpsest_queue_depth") == 1
    assert value(values, "palimpsest_queue_oldest_age_seconds") > 0
    assert value(values, "palimpsest_models") == 1
    assert claim.tenant not in str(values.keys())


def test_phases_failures_retries_and_lost_leases_are_counted_once(world: World, scrape: Scrape) -> None:
    before = scrape()
    world.model()
    world.task("a")
    world.request("a")
    lost = world.claim()
    with session_scope(tenant=lost.tenant, role="worker") as session:
        session.connection().exec_driver_sql("UPDATE updates SET lease_expires_at = now() - interval '1 s'")
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        assert sweep_expired(session) == [lost.update_id]
    claim = world.claim()
    with session_scope(tenant=claim.tenant, role="worker") as session:
        assert begin_evaluating(session, claim=claim)
    with session_scope(tenant=claim.tenant, role="worker") as session:
        change_state(session, update_id=claim.update_id, to=UpdateState.REJECTED, fence=claim.fence)
    for _ in range(2):  # the second scrape counts nothing again
        after = scrape()

        def gained(name: str, after: dict[Key, float] = after, **labels: str) -> float:
            return value(after, name, **labels) - value(before, name, **labels)

        assert gained("palimpsest_update_phase_seconds_count", phase="queued") == 2
        assert gained("palimpsest_update_phase_seconds_count", phase="training") == 2
        assert gained("palimpsest_update_phase_seconds_count", phase="evaluating") == 1
        assert gained("palimpsest_updates_finished_total", state="rejected") == 1
        assert gained("palimpsest_leases_lost_total") == 1
        assert gained("palimpsest_update_retries_total") == 1
        assert gained("palimpsest_update_attempts_failed_total", code="lease_expired") == 1


def test_a_final_failure_is_no_retry(world: World, scrape: Scrape) -> None:
    before = scrape()
    world.model()
    world.task("a")
    world.request("a")
    claim = world.claim()
    with session_scope(tenant=claim.tenant, role="worker") as session:
        fail_attempt(session, claim=claim, code="made_up", message="no", final=True)
    after = scrape()
    assert value(after, "palimpsest_update_attempts_failed_total", code="made_up") == 1
    assert value(after, "palimpsest_update_retries_total") == value(before, "palimpsest_update_retries_total")


def test_the_gpu_memory_is_that_of_active_updates_alone(world: World, scrape: Scrape) -> None:
    world.model()
    world.task("a")
    world.request("a")
    claim = world.claim()
    progress = asdict(Progress("training", gpu_memory_bytes=3_000_000))
    with session_scope(tenant=claim.tenant, role="worker") as session:
        renew_lease(session, claim=claim, lease_seconds=30, progress=progress)
    assert world.update(claim.update_id)["progress"]["gpu_memory_bytes"] == 3_000_000
    assert value(scrape(), "palimpsest_gpu_memory_bytes") == 3_000_000
    with session_scope(tenant=claim.tenant, role="worker") as session:
        fail_attempt(session, claim=claim, code="made_up", message="no", final=True)
    assert value(scrape(), "palimpsest_gpu_memory_bytes") == 0


def test_the_metrics_name_the_process(scrape: Scrape) -> None:
    assert value(scrape(), "process_resident_memory_bytes") > 1_000_000


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A database that takes connections and never says a word, as a stopped process does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://x:x@127.0.0.1:{server.getsockname()[1]}/x"


def test_a_hung_database_costs_its_parts_and_not_the_scrape(
    scrape: Scrape, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = value(scrape(), "palimpsest_scrape_errors_total", part="database")
    configure(monkeypatch, database_url=silent_server, metrics_timeout_seconds=0.2)
    began = time.monotonic()
    first, second = scrape(), scrape()
    assert time.monotonic() - began < 2
    for values in (first, second):
        assert ("palimpsest_queue_depth", ()) not in values
        assert value(values, "process_resident_memory_bytes") > 0
    assert value(second, "palimpsest_scrape_errors_total", part="database") >= before + 2


def test_a_part_that_cannot_be_read_leaves_the_others(
    scrape: Scrape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.metrics.database.ARTIFACTS", "SELECT no_such_column FROM versions")
    before = value(scrape(), "palimpsest_scrape_errors_total", part="storage")
    values = scrape()
    assert value(values, "palimpsest_scrape_errors_total", part="storage") == before + 1
    assert ("palimpsest_queue_depth", ()) in values


def test_deliveries_to_webhooks_are_counted_by_what_came_of_them(world: World, scrape: Scrape) -> None:
    hook = world.ok(world.client.post("/v1/webhooks", json={"url": "https://93.184.215.14/"}))
    world.ok(world.client.post(f"/v1/webhooks/{hook['id']}/test"))
    values = scrape()
    assert value(values, "palimpsest_webhook_deliveries", state="pending") == 1
    assert value(values, "palimpsest_webhook_deliveries", state="failed") == 0
    assert value(values, "palimpsest_webhook_overdue_seconds") > 0
    world.ok(world.client.patch(f"/v1/webhooks/{hook['id']}", json={"enabled": False}))
    values = scrape()
    assert value(values, "palimpsest_webhook_deliveries", state="pending") == 0
    assert value(values, "palimpsest_webhook_deliveries", state="failed") == 1
    assert value(values, "palimpsest_webhook_overdue_seconds") == 0


def test_metrics_can_be_switched_off(
    client: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings.model_fields["metrics_enabled"].default is True
    configure(monkeypatch, metrics_enabled=False)
    assert world.problem(client.get("/metrics")) == (404, "metrics_disabled")
