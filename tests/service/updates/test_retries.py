"""A failed attempt is tried again after a while, and holds up no other model meanwhile."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from service.config import get_settings
from service.db import session_scope
from service.models import UpdateState
from service.updates import leases
from tests.scenes import World


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A minute passes before a second attempt."""
    monkeypatch.setenv("PALIMPSEST_RETRY_SECONDS", "60")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


def fail(world: World) -> UpdateState | None:
    """Claims the next update and fails the attempt with what another one may mend."""
    claim = world.claim()
    with session_scope(tenant="acme", role="worker") as session:
        return leases.fail_attempt(session, claim=claim, code="artifact_store_unavailable", message="full")


def pass_time() -> None:
    """Lets every wait for a further attempt be over."""
    with session_scope(tenant="*", role="worker") as session:
        session.execute(text("UPDATE updates SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL"))


def from_now(moment: str) -> timedelta:
    return datetime.fromisoformat(moment) - datetime.now(UTC)


@pytest.fixture
def queued(world: World, waiting: None) -> str:
    """The first of two updates of one model."""
    world.model()
    world.task("one")
    first: str = world.request("one")["id"]
    world.request("one")
    return first


def test_an_update_that_failed_is_tried_again_later_and_the_model_keeps_its_order(
    world: World, queued: str
) -> None:
    assert fail(world) == "queued"
    update = world.update(queued)
    assert timedelta(seconds=50) < from_now(update["next_attempt_at"]) <= timedelta(seconds=61)
    assert world.claim() is None  # nor is the one behind it
    pass_time()
    claim = world.claim()
    assert (claim.update_id, claim.attempt) == (queued, 2)
    assert world.update(queued)["next_attempt_at"] is None


def test_other_models_do_not_wait(world: World, queued: str) -> None:
    world.model("other")
    world.task("one", model="other")
    other = world.request("one", model="other")["id"]
    assert fail(world) == "queued"
    assert world.claim().update_id == other


def test_each_wait_is_four_times_as_long_and_the_last_attempt_leaves_none(world: World, queued: str) -> None:
    fail(world)
    pass_time()
    fail(world)
    assert timedelta(seconds=230) < from_now(world.update(queued)["next_attempt_at"])
    pass_time()
    assert fail(world) == "failed"
    assert world.update(queued)["next_attempt_at"] is None


def test_an_update_that_waits_for_its_next_attempt_is_cancelled_at_once(world: World, queued: str) -> None:
    fail(world)
    cancelled = world.ok(world.client.post(f"/v1/updates/{queued}/cancel"))
    assert (cancelled["status"], cancelled["next_attempt_at"]) == ("cancelled", None)
    assert world.claim().update_id != queued
