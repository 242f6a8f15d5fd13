"""The dial between a version and its parent: real versions, scored at every point between."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import text

from service.db import EVERY_TENANT, session_scope
from service.dials.leases import DIALS
from service.models import Dial, DialScore, EvalSet, Score
from tests.conftest import emptied
from tests.scenes import World, make_client
from workers import dials
from workers.tasks import run_next_dial

FORGETFUL: dict[str, Any] = {
    "strategy": {"name": "sequential"},
    "training": {**World.TRAINING, "epochs": 6},
}
DIAL = "/v1/models/triage/versions/2/dial"


@pytest.fixture(scope="module")
def world(database_url: str, redis_url: str) -> Iterator[World]:
    """A model that learnt two tasks, the second without rehearsing the first."""
    emptied(database_url)
    world = World(make_client("acme"))
    world.model(gate={"max_regression": 0.5})
    world.task("one")
    world.task("two", ("random", "socket"))
    world.learn("one", **FORGETFUL)
    world.learn("two", **FORGETFUL)
    yield world
    emptied(database_url)


@pytest.fixture(scope="module")
def dial(world: World) -> dict[str, Any]:
    """The dial of version 2 at a few points."""
    return world.dial(2, betas=[0.3, 0.6])


def point(dial: dict[str, Any], beta: float) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in dial["points"] if entry["beta"] == beta)
    return found


def stored_points() -> dict[tuple[float, str], tuple[Any, ...]]:
    """Every row of every dial, by β and eval set."""
    with session_scope(tenant="acme") as session:
        rows = session.scalars(sa.select(DialScore)).all()
        return {
            (row.beta, row.eval_set_id): (
                row.score,
                row.correct,
                row.predicted,
                row.confidence,
                row.created_at,
            )
            for row in rows
        }


def expire_leases() -> None:
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        session.execute(text("UPDATE dials SET lease_expires_at = now() - interval '1 second'"))
        DIALS.sweep(session)  # before whoever holds one renews it


def test_a_dial_is_asked_for_by_post_and_read_by_get(world: World) -> None:
    where = "/v1/models/triage/versions/1/dial"
    assert world.problem(world.client.get(where)) == (404, "dial_not_found")
    asked = world.client.post(where, json={"betas": [0.5]})
    assert (asked.status_code, asked.headers["Location"]) == (202, where)
    assert (asked.json()["status"], asked.json()["betas"], asked.json()["points"]) == (
        "queued",
        [0, 0.5, 1],
        [],
    )
    assert world.client.post(where, json={"betas": [0.5]}).status_code == 202
    assert run_next_dial()
    assert not run_next_dial()
    done = world.ok(world.client.get(where))
    assert (done["status"], done["parent"], done["error"]) == ("done", 0, None)
    assert [(entry["beta"], entry["source"]) for entry in done["points"]] == [
        (0, "recorded"), (0.5, "computed"), (1, "recorded"),
    ]  # fmt: skip
    assert point(done, 0)["tasks"][0]["score"] is None, "the base of a classifier has no head"
    assert point(done, 0.5)["tasks"][0]["score"] is not None
    assert done["recommended_beta"] is None, "there is no old task to lose"
    again = world.client.post(where, json={"betas": [0.5]})
    assert (again.status_code, again.json()) == (200, done)
    assert not run_next_dial()


def test_its_ends_are_the_stored_scores_of_parent_and_version_and_the_measures_those_of_the_report(
    world: World, dial: dict[str, Any]
) -> None:
    for beta, version in ((0, 1), (1, 2)):
        stored = {
            s["task"]: (s["score"], s["eval_size"])
            for s in world.get(f"/models/triage/versions/{version}")["scores"]
        }
        found = {task["task"]: (task["score"], task["eval_size"]) for task in point(dial, beta)["tasks"]}
        assert found == stored
    report = world.get("/models/triage/versions/2/report")
    for name, value in report["summary"].items():
        if name in point(dial, 1):
            assert point(dial, 1)[name] == value, name
    flips = {task["task"]: (task["flips"], task["role"]) for task in report["tasks"]}
    assert {task["task"]: (task["flips"], task["role"]) for task in point(dial, 1)["tasks"]} == flips
    assert all(task["flips"] == {"negative": 0, "positive": 0} for task in point(dial, 0)["tasks"])


def test_every_score_stands_between_exact_bounds(dial: dict[str, Any]) -> None:
    scipy = pytest.importorskip("scipy.stats")
    for entry in dial["points"]:
        for task in entry["tasks"]:
            right, size = round(task["score"] * task["eval_size"]), task["eval_size"]
            low = scipy.beta.ppf(0.05, right, size - right + 1) if right else 0.0
            high = scipy.beta.ppf(0.95, right + 1, size - right) if right < size else 1.0
            assert math.isclose(task["interval"][0], low, abs_tol=1e-9)
            assert math.isclose(task["interval"][1], high, abs_tol=1e-9)


def test_a_blend_answers_every_example_as_the_dial_did_at_the_same_point(
    world: World, dial: dict[str, Any]
) -> None:
    update = world.ok(
        world.client.post("/v1/models/triage/versions/2/blend", json={"beta": 0.3, "promotion": "manual"})
    )
    world.work()
    version = world.update(update["id"])["version"]
    with session_scope(tenant="acme") as session:
        rows = session.scalars(sa.select(Score).where(Score.version == version)).all()
        assert {task for (task,) in session.execute(sa.select(EvalSet.task_id))} == {
            row.task_id for row in rows
        }
    dialled = stored_points()
    for row in rows:
        assert dialled[0.3, row.eval_set_id][:4] == (row.score, row.correct, row.predicted, row.confidence)


def test_points_are_added_and_none_is_scored_twice(world: World, dial: dict[str, Any]) -> None:
    before = stored_points()
    answer = world.client.post(DIAL, json={"betas": [0.6, 0.9]})
    assert (answer.status_code, answer.json()["betas"]) == (202, [0, 0.3, 0.6, 0.9, 1])
    assert [entry["beta"] for entry in answer.json()["points"]] == [0, 0.3, 0.6, 1]
    assert run_next_dial()
    after = stored_points()
    assert {key: after[key] for key in before} == before
    assert {beta for beta, _ in after.keys() - before.keys()} == {0.9}
    crowd = world.client.post(DIAL, json={"betas": [step / 200 for step in range(100)]})
    assert world.problem(crowd) == (422, "too_many_points")
    assert world.problem(world.client.post(DIAL, json={"betas": [1.5]}))[0] == 422


def test_a_killed_worker_loses_one_point_and_another_goes_on_without_a_duplicate(
    world: World, dial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing in a worker outlives it."""

    kept, recorded = dials._record, []

    def record(*arguments: Any) -> None:
        if recorded:
            raise Killed
        recorded.append(arguments[2])
        kept(*arguments)

    world.ok(world.client.post(DIAL, json={"betas": [0.15, 0.45, 0.75]}))
    with monkeypatch.context() as patch:
        patch.setattr(dials, "_record", record)
        with pytest.raises(Killed):
            run_next_dial()
    half = world.ok(world.client.get(DIAL))
    assert half["status"] == "scoring"
    assert [entry["beta"] for entry in half["points"] if entry["beta"] in (0.15, 0.45, 0.75)] == [0.15]
    assert half["recommended_beta"] is None
    before = stored_points()
    expire_leases()
    waiting = world.ok(world.client.get(DIAL))
    assert (waiting["status"], waiting["attempt"], waiting["error"]["code"]) == ("queued", 2, "lease_expired")
    assert run_next_dial()
    done = world.ok(world.client.get(DIAL))
    assert (done["status"], done["error"]) == ("done", None)
    assert [entry["beta"] for entry in done["points"]] == done["betas"]
    after = stored_points()
    assert {key: after[key] for key in before} == before


def test_a_worker_whose_dial_was_taken_writes_nothing(
    world: World, dial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = dials._record

    def record(*arguments: Any) -> None:
        expire_leases()
        kept(*arguments)

    world.ok(world.client.post(DIAL, json={"betas": [0.05]}))
    before = stored_points()
    with monkeypatch.context() as patch:
        patch.setattr(dials, "_record", record)
        assert run_next_dial()
    assert stored_points() == before
    assert world.ok(world.client.get(DIAL))["status"] == "queued"
    assert run_next_dial()
    assert world.ok(world.client.get(DIAL))["status"] == "done"


def test_what_fails_for_good_is_told_and_another_request_takes_it_up_again(
    world: World, dial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.training.errors import TrainingFailed

    def fail(*_: Any) -> None:
        raise TrainingFailed("adapters_differ", "the parent's adapter sits on other layers")

    world.ok(world.client.post(DIAL, json={"betas": [0.95]}))
    with monkeypatch.context() as patch:
        patch.setattr(dials, "_record", fail)
        assert run_next_dial()
    failed = world.ok(world.client.get(DIAL))
    assert (failed["status"], failed["error"]["code"]) == ("failed", "adapters_differ")
    assert len(failed["points"]) == len(failed["betas"]) - 1, "what was scored before stays readable"
    assert world.client.post(DIAL, json={"betas": [0.95]}).status_code == 202
    assert run_next_dial()
    assert world.ok(world.client.get(DIAL))["status"] == "done"


@pytest.mark.slow
def test_an_erased_eval_example_leaves_a_dial_over_the_others(world: World, dial: dict[str, Any]) -> None:
    rows = world.get("/models/triage/tasks/one/examples?split=eval")["data"]
    world.client.delete(f"/v1/models/triage/tasks/one/examples/{rows[0]['id']}")
    size = point(dial, 1)["tasks"][0]["eval_size"]
    found = world.dial(2, betas=[0.35])
    assert found["status"] == "done"
    assert [entry["beta"] for entry in found["points"]] == found["betas"]
    assert {entry["tasks"][0]["eval_size"] for entry in found["points"]} == {size - 1}


def test_the_base_has_no_dial(world: World) -> None:
    answer = world.client.post("/v1/models/triage/versions/0/dial")
    assert world.problem(answer) == (422, "no_parent")
    with session_scope(tenant="acme") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Dial).where(Dial.version == 0)) == 0
