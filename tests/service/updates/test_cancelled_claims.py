"""A cancel that was acknowledged is carried out, however the worker that held the update ends."""

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from service.db import session_scope
from service.updates import leases
from service.updates.leases import Claim
from tests.scenes import World


def stops(session: Session, claim: Claim) -> object:
    return leases.give_back(session, claim=claim, reason="the worker is stopping")


def fails(session: Session, claim: Claim) -> object:
    return leases.fail_attempt(session, claim=claim, code="trainer_died", message="killed by SIGKILL")


@pytest.mark.parametrize("ends", [stops, fails])
def test_an_update_whose_worker_ends_before_it_hears_of_the_cancel_is_cancelled(
    world: World, ends: Callable[[Session, Claim], object]
) -> None:
    world.model()
    world.task("one")
    update = world.request("one")
    claim = world.claim()
    cancelling = world.ok(world.client.post(f"/v1/updates/{update['id']}/cancel"))
    assert (cancelling["status"], cancelling["cancel_requested"]) == ("training", True)
    with session_scope(tenant="acme", role="worker") as session:
        assert ends(session, claim)
    ended = world.update(update["id"])
    assert (ended["status"], ended["attempt"]) == ("cancelled", 1)
    with session_scope(tenant="acme", role="worker") as session:
        assert not ends(session, claim)  # the claim is over
    assert world.update(update["id"]) == ended
