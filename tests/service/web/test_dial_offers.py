"""The page of a version offers to have its dial scored only where asking would be heeded."""

from datetime import UTC, datetime
from typing import Any

import pytest

from service.db import session_scope
from service.models import Version
from service.registry.queries import get_model
from tests.scenes import World
from tests.service.web.visitors import Browser, visible_text

PAGE = "/ui/models/triage/versions/2"


def two_versions(world: World, *, removed: int | None = None, **model: Any) -> None:
    """A model with two versions, of which the adapter of one may be gone."""
    world.model(**model)
    with session_scope(tenant="acme", role="worker") as session:
        row = get_model(session, model="triage")
        for number in (1, 2):
            session.add(
                Version(
                    tenant_id="acme", model_id=row.id, number=number, parent=number - 1, lineage=[*range(number + 1)],
                    strategy="sequential", parameters={}, training={}, cut=0, labels=["a"], statistics={}, provenance={},
                    artifact_removed_at=datetime.now(UTC) if number == removed else None,
                )
            )  # fmt: skip
        row.last_version = 2


def test_a_dial_that_can_be_scored_is_offered(world: World, browser: Browser) -> None:
    two_versions(world)
    html = browser.read(PAGE)
    assert 'id="ask-dial"' in html
    assert "cannot be scored" not in html


@pytest.mark.parametrize("removed", [1, 2])
def test_a_dial_between_adapters_that_were_removed_is_not_offered(
    world: World, browser: Browser, removed: int
) -> None:
    two_versions(world, removed=removed)
    html = browser.read(PAGE)
    assert 'id="ask-dial"' not in html
    assert f"The adapter of version {removed} was removed" in visible_text(html)
    assert browser.send_own(f"{PAGE}/dial").status_code == 410


def test_a_dial_between_adapters_that_cannot_be_added_up_is_not_offered(
    world: World, browser: Browser
) -> None:
    two_versions(world, adapter={"type": "oft"})
    html = browser.read(PAGE)
    assert 'id="ask-dial"' not in html
    assert "The strategy 'blend' takes the adapter type" in visible_text(html)
    assert browser.send_own(f"{PAGE}/dial").status_code == 422
