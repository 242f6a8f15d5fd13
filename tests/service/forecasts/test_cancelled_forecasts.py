"""A forecast can be cancelled until it is finished, and whoever was at work on it can write nothing more."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from service.config import get_settings
from service.db import EVERY_TENANT, session_scope
from service.forecasts import commands
from service.forecasts.leases import FORECASTS
from service.forecasts.queries import get_forecast
from service.leased_rows import RowClaim
from service.migrate import downgrade, upgrade
from tests.scenes import World, make_client

FORECASTS_OF = "/v1/models/triage/updates:forecast"


@pytest.fixture
def asked(world: World) -> dict[str, Any]:
    """A forecast that waits for a worker."""
    world.model()
    world.task("one", train=4, held=2)
    return ask(world)


def ask(world: World) -> dict[str, Any]:
    """Asks for a forecast."""
    return world.ok(world.client.post(FORECASTS_OF, json={"tasks": ["one"]}))


def cancel(world: World, forecast: dict[str, Any]) -> dict[str, Any]:
    """Cancels it."""
    return world.ok(world.client.post(f"/v1/forecasts/{forecast['id']}/cancel"))


def claimed() -> RowClaim | None:
    """Claims the next forecast as a worker does."""
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        return FORECASTS.claim(session, worker="test", lease_seconds=30)


def test_one_that_waits_is_cancelled_at_once_and_no_worker_takes_it_up(
    world: World, asked: dict[str, Any]
) -> None:
    cancelled = cancel(world, asked)
    assert cancelled["status"] == "cancelled"
    assert cancelled["finished_at"] is not None
    assert world.get(f"/forecasts/{asked['id']}") == cancelled
    assert world.get("/models/triage/forecasts")["data"] == [cancelled]
    assert claimed() is None


def test_cancelling_again_changes_nothing(world: World, asked: dict[str, Any]) -> None:
    assert cancel(world, asked) == cancel(world, asked)


def renews(session: Session, claim: RowClaim) -> object:
    return FORECASTS.renew(session, claim=claim, lease_seconds=30, progress={"phase": "training"}).held


def is_held(session: Session, claim: RowClaim) -> object:
    return FORECASTS.hold(session, claim=claim)


def finishes(session: Session, claim: RowClaim) -> object:
    return commands.finish_forecast(session, claim=claim, skipped={})


def stops(session: Session, claim: RowClaim) -> object:
    return FORECASTS.give_back(session, claim=claim)


def fails(session: Session, claim: RowClaim) -> object:
    return FORECASTS.fail(session, claim=claim, code="trainer_died", message="killed by SIGKILL")


def is_swept(session: Session, _claim: RowClaim) -> object:
    return FORECASTS.sweep(session)


@pytest.mark.parametrize("tries", [renews, is_held, finishes, stops, fails, is_swept])
def test_the_worker_that_was_at_it_has_lost_its_claim_and_changes_nothing(
    world: World, asked: dict[str, Any], tries: Callable[[Session, RowClaim], object]
) -> None:
    claim = claimed()
    assert claim is not None
    cancelled = cancel(world, asked)
    assert (cancelled["status"], cancelled["progress"]) == ("cancelled", None)
    with session_scope(tenant="acme", role="worker") as session:
        assert not tries(session, claim)
    assert world.get(f"/forecasts/{asked['id']}") == cancelled
    with session_scope(tenant="acme") as session:
        row = get_forecast(session, forecast_id=asked["id"])
        assert (row.worker, row.lease_expires_at) == (None, None)


def test_one_that_is_finished_can_no_longer_be_cancelled(world: World, asked: dict[str, Any]) -> None:
    claim = claimed()
    assert claim is not None
    with session_scope(tenant="acme", role="worker") as session:
        FORECASTS.fail(session, claim=claim, code="non_finite_loss", message="it is nan", final=True)
    failed = world.get(f"/forecasts/{asked['id']}")
    refused = world.client.post(f"/v1/forecasts/{asked['id']}/cancel")
    assert world.problem(refused) == (409, "forecast_finished")
    assert "is failed" in refused.json()["detail"]
    assert world.get(f"/forecasts/{asked['id']}") == failed


def test_it_takes_the_scope_that_asking_took(world: World, asked: dict[str, Any]) -> None:
    where = f"/v1/forecasts/{asked['id']}/cancel"
    assert world.problem(make_client("acme", "read").post(where)) == (403, "missing_scope")
    assert world.problem(world.client.post("/v1/forecasts/fct_none/cancel")) == (404, "forecast_not_found")
    assert world.get(f"/forecasts/{asked['id']}")["status"] == "queued"
    assert make_client("acme", "train").post(where).status_code == 200


def test_a_cancelled_forecast_makes_room_in_a_full_queue(
    world: World, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = get_settings().model_copy(update={"max_queued_updates_per_tenant": 1})
    monkeypatch.setattr(commands, "get_settings", lambda: small)
    full = world.client.post(FORECASTS_OF, json={"tasks": ["one"]})
    assert world.problem(full) == (429, "too_many_queued_forecasts")
    cancel(world, asked)
    assert ask(world)["status"] == "queued"


def test_the_release_before_takes_it_for_failed(
    world: World, asked: dict[str, Any], database_url: str
) -> None:
    cancel(world, asked)
    downgrade(database_url, revision="0017")
    upgrade(database_url)
    found = world.get(f"/forecasts/{asked['id']}")
    assert (found["status"], found["error"]["code"]) == ("failed", "cancelled")
