"""Two API processes over one database are one service: limits, conditions and moves hold across both."""

import itertools
from collections import Counter
from functools import partial
from typing import Any

import httpx
import pytest

from tests.faults.crowds import at_once, statuses
from tests.faults.rig import Rig
from tests.scenes import World

pytestmark = pytest.mark.slow  # API processes to start

ALIASES = "/v1/models/triage/aliases"


def test_a_key_has_one_rate_limit_however_many_processes_count_it(rig: Rig) -> None:
    limited = [rig.start_api(PALIMPSEST_RATE_LIMIT_PER_MINUTE="20") for _ in range(2)]
    answers = at_once([partial(client.get, "/v1/models") for client in limited * 15])
    allowed = Counter(statuses(answers))
    # One more where a window of the sliding count ends in between.
    assert set(allowed) == {200, 429}
    assert allowed[200] in (20, 21)


def test_of_many_who_saw_the_same_alias_one_moves_it(
    crowd: World, clients: list[httpx.Client], two_apis: Rig
) -> None:
    crowd.model()
    for version in (1, 2):
        two_apis.add_version(version)
    crowd.ok(crowd.client.put(f"{ALIASES}/staging", json={"version": 0}))
    for version in (1, 2, 1, 2):
        tag = crowd.client.get(f"{ALIASES}/staging").headers["ETag"]
        put = {"json": {"version": version}, "headers": {"If-Match": tag}}
        answers = at_once([partial(client.put, f"{ALIASES}/staging", **put) for client in clients * 4])
        assert Counter(statuses(answers)) == {200: 1, 412: 7}
        [moved] = [answer for answer in answers if answer.is_success]
        assert moved.headers["ETag"] != tag
        assert clients[1].get(f"{ALIASES}/staging").headers["ETag"] == moved.headers["ETag"]
    assert_replays(crowd)


def test_an_alias_that_many_create_at_once_is_created_once(
    crowd: World, clients: list[httpx.Client], two_apis: Rig
) -> None:
    crowd.model()
    two_apis.add_version(1)
    answers = at_once(
        [partial(client.put, f"{ALIASES}/staging", json={"version": 1}) for client in clients * 4]
    )
    assert set(statuses(answers)) == {200}
    assert [move["alias"] for move in moves(crowd)] == ["champion", "staging"]


def test_a_model_that_many_create_at_once_is_created_once(clients: list[httpx.Client]) -> None:
    body = {"name": "triage", "base_model": "minilm-l6", "task_type": "text-classification"}
    answers = at_once([partial(client.post, "/v1/models", json=body) for client in clients * 4])
    assert Counter(statuses(answers)) == {201: 1, 409: 7}


def moves(world: World) -> list[dict[str, Any]]:
    """The model's history, oldest first."""
    return world.get("/models/triage/history?limit=500")["data"][::-1]


def assert_replays(world: World) -> None:
    """The history, played from its beginning, leads from move to move and ends where the aliases stand."""
    stand: dict[str, int | None] = {}
    for move in moves(world):
        assert move["from_version"] == stand.get(move["alias"])
        stand[move["alias"]] = move["to_version"]
    aliases = world.get("/models/triage/aliases")["data"]
    assert {alias["alias"]: alias["version"] for alias in aliases} == stand


def test_everybody_moving_one_champion_at_once_leaves_one_champion_and_its_whole_history(
    crowd: World, clients: list[httpx.Client], two_apis: Rig
) -> None:
    """Rollbacks, promotions, approvals, rejections, alias moves and a recording worker, many times at once."""
    crowd.model()
    crowd.task("one", train=4, held=4)
    held = [crowd.learn("one", relearn=True, promotion="manual", training=QUICK)["id"] for _ in range(2)]
    running = crowd.request("one", relearn=True, training=QUICK)["id"]
    model = "/v1/models/triage"

    def storm(client: httpx.Client, number: int) -> list[httpx.Response]:
        posts = [
            lambda: client.post(f"{model}/rollback", json={"reason": "storm"}),
            lambda: client.put(f"{ALIASES}/champion", json={"version": 1 + number % 2}),
            lambda: client.post(f"/v1/updates/{held[number % 2]}/approve"),
            lambda: client.put(f"{ALIASES}/canary", json={"version": number % 3}),
            lambda: client.post(f"{model}/rollback", json={"to": number % 3, "reason": "storm"}),
            lambda: client.post(f"{model}/updates", json={"tasks": ["one"], "relearn": True, "promotion": "manual"}),
            lambda: client.patch(model, json={"metadata": {"from": number}}),
        ]  # fmt: skip
        return [posts[(number + turn) % len(posts)]() for turn in range(2 * len(posts))]

    answers = at_once(
        [
            lambda: crowd.work_once() and [],
            *[partial(storm, client, number) for number, client in enumerate(clients * 4)],
        ]
    )
    codes = statuses(list(itertools.chain.from_iterable(answers)))
    assert set(codes) <= {200, 202, 409}
    assert Counter(codes)[200] > 20
    assert_replays(crowd)
    assert crowd.update(running)["status"] in ("promoted", "awaiting_approval")
    assert two_apis.sql("SELECT count(*) FROM aliases WHERE name = 'champion'") == [(1,)]
    assert crowd.get("/models/triage")["counts"]["queued_updates"] == Counter(codes)[202]


QUICK = {"max_steps": 1, "max_length": 16, "batch_size": 8, "seed": 1}
