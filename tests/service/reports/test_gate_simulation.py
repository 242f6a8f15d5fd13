"""Another gate policy on updates that are over: verdicts from stored outcomes, nothing trained, nothing changed."""

from typing import Any

import pytest

from tests.scenes import World


@pytest.fixture
def judged(world: World) -> World:
    """A model with two judged updates; the second, without rehearsal, forgets what the first has learnt."""
    world.model(gate={"max_regression": 0.02})
    world.task("one")
    world.task("two", ("random", "socket"))
    forgetful: dict[str, Any] = {
        "strategy": {"name": "sequential"},
        "training": {**World.TRAINING, "epochs": 6},
    }
    world.request("one", **forgetful)
    world.request("two", **forgetful)
    world.work()
    return world


def simulate(world: World, **body: object) -> dict[str, Any]:
    return world.ok(world.client.post("/v1/models/triage/gate:simulate", json=body))


def test_a_simulation_repeats_the_gate_tells_what_another_policy_would_do_and_changes_nothing(
    judged: World,
) -> None:
    before = judged.get("/models/triage")
    stored = [judged.get(f"/models/triage/versions/{number}/report")["verdict"] for number in (1, 2)]

    same = simulate(judged)
    assert [entry["version"] for entry in same["data"]] == [1, 2]
    assert [entry["verdict"] for entry in same["data"]] == stored
    assert (same["summary"]["changed"], same["policy"]) == (0, before["gate"])
    assert stored[1]["decision"] != "pass"

    lenient = simulate(judged, max_regression=1.0)
    assert [entry["outcome"] for entry in lenient["data"]] == ["promote", "promote"]
    assert [entry["changed"] for entry in lenient["data"]] == [False, True]
    assert lenient["policy"] == {**before["gate"], "max_regression": 1.0}

    strict = simulate(judged, versions=[2], min_new_score=1.0, on_inconclusive="reject")
    assert [(entry["version"], entry["outcome"]) for entry in strict["data"]] == [(2, "reject")]
    rules = {reason["rule"] for reason in strict["data"][0]["verdict"]["reasons"]}
    assert rules == {"max_regression", "new_task_regression", "min_new_score"}

    by_hand = simulate(judged, promotion="manual")
    assert by_hand["summary"] == {"promote": 0, "hold": 2, "reject": 0, "changed": 0}

    assert judged.get("/models/triage") == before

    answer = judged.client.post("/v1/models/triage/gate:simulate", json={"versions": [0, 1]})
    assert judged.problem(answer) == (404, "not_judged")
    answer = judged.client.post("/v1/models/triage/gate:simulate", json={"confidence": 2})
    assert judged.problem(answer)[0] == 422
