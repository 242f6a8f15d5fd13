"""Ten identical requests at once with one Idempotency-Key, over two API processes: one effect, told to all ten."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest

from tests.faults.crowds import at_once, statuses
from tests.faults.rig import Rig, until
from tests.scenes import World

pytestmark = pytest.mark.slow  # two API processes to start

ROWS = [{"text": f"text {number}", "label": "a", "split": "train"} for number in range(200)]
MODEL = {"name": "second", "base_model": "minilm-l6", "task_type": "text-classification"}


@dataclass(frozen=True)
class Case:
    """A creating POST: a body, another one, the query that counts its effects, and what a repeat does not show."""

    path: str
    body: dict[str, Any]
    other: dict[str, Any]
    effects: str
    secret: str | None = None


CASES = {
    "updates": Case(
        "/models/triage/updates", {"tasks": ["one"]}, {"tasks": ["one"], "relearn": True},
        "SELECT count(*) FROM updates",
    ),
    "models": Case(
        "/models", MODEL, {**MODEL, "name": "third"},
        "SELECT count(*) FROM models WHERE name <> 'triage'",
    ),
    "examples": Case(
        "/models/triage/tasks/one/examples", {"examples": ROWS}, {"examples": ROWS[:1]},
        "SELECT last_batch - 1 FROM models",
    ),
    "rollback": Case(
        "/models/triage/rollback", {"reason": "worse"}, {"reason": "much worse"},
        "SELECT count(*) FROM alias_moves WHERE kind = 'rolled_back'",
    ),
    "keys": Case(
        "/keys", {"name": "new", "scopes": ["read"]}, {"name": "newer", "scopes": ["read"]},
        "SELECT count(*) FROM api_keys WHERE name LIKE 'new%'", secret="api_key",
    ),
    "webhooks": Case(
        "/webhooks", {"url": "https://93.184.215.14/"}, {"url": "https://93.184.215.14/other"},
        "SELECT count(*) FROM webhooks", secret="secret",
    ),
}  # fmt: skip


@pytest.fixture
def scene(crowd: World, two_apis: Rig) -> World:
    """A model that has something to learn, and a way back: each rollback of three would find a champion to return to."""
    crowd.model()
    crowd.task("one", train=2, held=2)
    for version in (1, 2, 3):
        two_apis.add_version(version)
        crowd.ok(crowd.client.put("/v1/models/triage/aliases/champion", json={"version": version}))
    return crowd


@pytest.mark.parametrize("name", CASES)
def test_ten_at_once_with_one_key_have_one_effect_and_every_repeat_is_told_of_it(
    scene: World, clients: list[httpx.Client], two_apis: Rig, name: str
) -> None:
    case = CASES[name]

    def post(client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
        return client.post(f"/v1{case.path}", json=body, headers={"Idempotency-Key": "once"})

    answers = at_once([partial(post, client, case.body) for client in clients * 5])
    given = [answer for answer in answers if answer.is_success]
    refused = [answer for answer in answers if not answer.is_success]
    assert statuses(answers)
    assert {scene.problem(answer) for answer in refused} <= {(409, "idempotency_key_in_flight")}
    assert all(answer.headers["Retry-After"] for answer in refused)
    [first] = [answer for answer in given if "Idempotent-Replayed" not in answer.headers]

    again = [
        until(lambda c=c: (a := post(c, case.body)).is_success and a, what="the answer") for c in clients
    ]
    for repeat in [answer for answer in [*given, *again] if answer is not first]:
        assert repeat.headers["Idempotent-Replayed"] == "true"
        assert repeat.status_code == first.status_code
        assert repeat.headers.get("Location") == first.headers.get("Location")
        assert repeat.json() == {**first.json(), **({case.secret: None} if case.secret else {})}
    assert {scene.problem(post(client, case.other)) for client in clients} == {
        (422, "idempotency_key_reused")
    }
    assert two_apis.sql(case.effects) == [(1,)]


def test_a_key_of_a_request_that_failed_is_free_for_the_next_try(
    scene: World, clients: list[httpx.Client], two_apis: Rig
) -> None:
    def post(client: httpx.Client, task: str) -> httpx.Response:
        return client.post(
            "/v1/models/triage/updates", json={"tasks": [task]}, headers={"Idempotency-Key": "once"}
        )

    assert {
        answer.status_code for answer in at_once([partial(post, client, "none") for client in clients * 3])
    } <= {
        404,
        409,
    }
    scene.ok(scene.client.put("/v1/models/triage/tasks/none"))
    assert until(lambda: (a := post(clients[1], "one")).is_success and a, what="an answer").status_code == 202
    assert two_apis.sql("SELECT count(*) FROM updates") == [(1,)]
