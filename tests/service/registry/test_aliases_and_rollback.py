"""Aliases, promotions, rollbacks and their history."""

import pytest
from sqlalchemy import text

from service.db import engine_for, session_scope
from service.models import Model, Version
from service.registry.commands import promote
from tests.scenes import World


@pytest.fixture
def promoted(world: World) -> World:
    """A model whose champion went 0 → 1 → 2 → 3."""
    world.model()
    with session_scope(tenant="acme", role="worker") as session:
        model = session.query(Model).one()
        for number in (1, 2, 3):
            session.add(
                Version(
                    tenant_id="acme", model_id=model.id, number=number, parent=number - 1, lineage=list(range(number + 1)),
                    parameters={}, training={}, cut=0, labels=[], statistics={}, provenance={},
                )
            )  # fmt: skip
            session.flush()
            promote(
                session,
                model=model,
                version=number,
                kind="promoted",
                actor="gate",
                reason=None,
                update_id=None,
            )
        model.last_version = 3
    return world


def champion(world: World) -> tuple[int, int | None]:
    """Champion and previous champion."""
    model = world.get("/models/triage")
    return model["champion"], model["previous"]


def test_repeated_rollbacks_walk_back_one_promotion_at_a_time(promoted: World) -> None:
    walk = [champion(promoted)]
    for _ in range(3):
        promoted.rollback()
        walk.append(champion(promoted))
    assert walk == [(3, 2), (2, 1), (1, 0), (0, None)]
    answer = promoted.client.post("/v1/models/triage/rollback", json={"reason": "further"})
    assert promoted.problem(answer) == (409, "no_previous_champion")


def test_a_second_rollback_returns_only_if_asked(promoted: World) -> None:
    promoted.rollback()
    promoted.rollback(to=3)
    assert champion(promoted) == (3, 2)


def test_a_rollback_to_an_earlier_champion_keeps_the_way_further_back(promoted: World) -> None:
    promoted.rollback(to=1)
    assert champion(promoted) == (1, 0)
    promoted.rollback(to=3)  # forward again: version 1 is where a plain rollback now goes
    assert champion(promoted) == (3, 1)


def test_a_rollback_to_the_champion_or_to_nowhere_is_refused(promoted: World) -> None:
    post = promoted.client.post
    assert promoted.problem(post("/v1/models/triage/rollback", json={"to": 3, "reason": "x"})) == (
        409,
        "already_champion",
    )
    assert promoted.problem(post("/v1/models/triage/rollback", json={"to": 9, "reason": "x"})) == (
        404,
        "version_not_found",
    )
    assert post("/v1/models/triage/rollback", json={}).status_code == 422


def test_a_model_without_promotions_has_nowhere_to_go(world: World) -> None:
    world.model()
    answer = world.client.post("/v1/models/triage/rollback", json={"reason": "x"})
    assert world.problem(answer) == (409, "no_previous_champion")


def test_history_says_who_when_and_why_and_cannot_be_rewritten(promoted: World) -> None:
    promoted.rollback()
    move = promoted.get("/models/triage/history?limit=1")["data"][0]
    assert (move["kind"], move["from_version"], move["to_version"]) == ("rolled_back", 3, 2)
    assert (move["by"], move["reason"]) == ("key:acme-test", "test")
    for role in ("app", "worker"):
        with (
            pytest.raises(Exception, match="permission denied"),
            session_scope(tenant="acme", role=role) as session,
        ):
            session.execute(text("DELETE FROM alias_moves"))


def test_an_alias_moves_only_when_its_tag_is_current(promoted: World) -> None:
    url = "/v1/models/triage/aliases/canary"
    assert promoted.problem(promoted.client.get(url)) == (404, "alias_not_found")
    tag = promoted.client.put(url, json={"version": 1}).headers["ETag"]
    assert promoted.client.put(url, json={"version": 2}, headers={"If-Match": tag}).status_code == 200
    stale = promoted.client.put(url, json={"version": 3}, headers={"If-Match": tag})
    assert promoted.problem(stale) == (412, "precondition_failed")
    aliases = {alias["alias"]: alias["version"] for alias in promoted.get("/models/triage/aliases")["data"]}
    assert aliases == {"canary": 2, "champion": 3}


def test_a_version_of_another_model_cannot_be_promoted(promoted: World) -> None:
    promoted.model("other")
    answer = promoted.client.put("/v1/models/other/aliases/champion", json={"version": 1})
    assert promoted.problem(answer) == (404, "version_not_found")
    assert promoted.problem(promoted.client.put("/v1/models/other/aliases/previous", json={"version": 0})) == (
        422, "reserved_alias",
    )  # fmt: skip


def test_concurrent_rollbacks_take_turns(promoted: World, database: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: (
                    promoted.client.post("/v1/models/triage/rollback", json={"reason": "x"}).status_code
                ),
                range(8),
            )
        )
    assert sorted(answers) == [200] * 3 + [409] * 5
    assert champion(promoted) == (0, None)
    with engine_for(database).connect() as connection:
        connection.execute(text("SET ROLE palimpsest_owner"))
        assert connection.execute(text("SELECT count(*) FROM alias_moves")).scalar() == 7


def test_concurrent_first_moves_of_an_alias_take_turns(promoted: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def put(version: int) -> int:
        return promoted.client.put(
            "/v1/models/triage/aliases/canary", json={"version": version % 3}
        ).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(put, range(16))) == {200}


def test_making_the_champion_champion_again_changes_nothing(promoted: World) -> None:
    assert promoted.client.put("/v1/models/triage/aliases/champion", json={"version": 3}).status_code == 200
    assert champion(promoted) == (3, 2)
