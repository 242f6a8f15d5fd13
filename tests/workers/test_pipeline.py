"""The main job with a real child, a real encoder and a real database; only the broker's hint is left out."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.scenes import World
from workers.lease import Lease
from workers.training.contract import Progress

LONG = {**World.TRAINING, "epochs": 20}  # long enough that a signal meets the child at work
BRIEF = {**World.TRAINING, "epochs": 1, "max_length": 16}
SUBJECTS = (("one", ("math", "os")), ("two", ("random", "socket")), ("three", ("string", "shutil")))


def while_training(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], *, times: int = 1) -> None:
    """Has `act` happen when the child reports its first training step, in the first `times` attempts."""
    original, left = Lease.report, [times]
    seen: set[Lease] = set()  # the leases themselves: an id is used again once its object has gone

    def report(lease: Lease, progress: Progress) -> None:
        original(lease, progress)
        if progress.phase == "training" and progress.step >= 1 and left[0] and lease not in seen:
            seen.add(lease)
            left[0] -= 1
            act()

    monkeypatch.setattr(Lease, "report", report)


def kill_child() -> None:
    """Kills the training child as the kernel's out-of-memory killer would."""
    from multiprocessing import forkserver

    server = forkserver._forkserver._forkserver_pid
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == server:
            os.kill(int(entry.parent.name), signal.SIGKILL)


def test_three_updates_posted_in_a_row_build_on_each_other(world: World) -> None:
    world.model(replay={"capacity": 20})
    for task, labels in SUBJECTS:
        world.task(task, labels)
    posted = [world.request(task)["id"] for task, _ in SUBJECTS]
    assert world.work() == 3
    updates = [world.update(update_id) for update_id in posted]
    assert [(u["status"], u["parent_version"], u["version"]) for u in updates] == [
        ("promoted", 0, 1), ("promoted", 1, 2), ("promoted", 2, 3),
    ]  # fmt: skip
    last = world.get("/models/triage/versions/3")
    assert last["lineage"] == [0, 1, 2, 3]
    assert last["labels"] == ["math", "os", "random", "socket", "shutil", "string"]
    assert [score["task"] for score in last["scores"]] == ["one", "three", "two"]
    assert last["statistics"]["replay_rows"] > 0
    report = world.get("/models/triage/reports/forgetting")
    assert report["tasks"] == ["one", "two", "three"]
    assert report["versions"] == [0, 1, 2, 3]
    assert report["matrix"][0] == [None, None, None]
    assert report["matrix"][1][0] is not None
    assert None not in report["matrix"][3]
    moves = world.get("/models/triage/history")["data"]
    assert [(move["from_version"], move["to_version"]) for move in moves] == [
        (2, 3),
        (1, 2),
        (0, 1),
        (None, 0),
    ]


def test_a_rollback_moves_the_champion_and_the_next_update_goes_on_from_there(world: World) -> None:
    world.model()
    for task, labels in SUBJECTS:
        world.task(task, labels)
    world.learn("one")
    world.learn("two")
    answer = world.rollback()
    assert (answer["rolled_back_from"], answer["champion"], answer["previous"]) == (2, 1, 0)
    assert world.get("/models/triage/reports/forgetting")["versions"] == [0, 1]
    third = world.learn("three")
    assert (third["parent_version"], third["version"]) == (1, 3)
    branch = world.get("/models/triage/versions/3")
    assert branch["lineage"] == [0, 1, 3]
    assert branch["labels"] == ["math", "os", "shutil", "string"]
    # Version 2 is still there, whole, and can be champion again.
    assert world.get("/models/triage/versions/2/report")["version"] == 2
    assert world.rollback(to=2)["champion"] == 2


def test_a_good_update_passes_the_gate_and_its_report_says_why(world: World) -> None:
    world.model(gate={"max_regression": 0.5})
    world.task("one", train=20, held=12)
    update = world.learn("one", promotion="gate")
    assert update["status"] == "promoted"
    assert update["decided_by"] == "gate"
    report = world.get("/models/triage/versions/1/report")
    assert report["verdict"]["decision"] == "pass"
    assert report["tasks"][0]["role"] == "new"
    assert report["tasks"][0]["score"] > 0.5
    assert report["summary"]["plasticity"] == report["tasks"][0]["score"]


def test_an_update_below_the_floor_is_rejected_and_the_champion_stays(world: World) -> None:
    world.model(gate={"min_new_score": 1.0})
    world.task("one")
    update = world.learn(
        "one", promotion="gate", training={"max_steps": 1, "learning_rate": 1e-6, "head_learning_rate": 1e-6}
    )
    assert update["status"] == "rejected"
    assert update["verdict"]["reasons"][0]["rule"] == "min_new_score"
    assert world.get("/models/triage")["champion"] == 0
    assert world.get("/models/triage/versions/1")["aliases"] == []


def test_a_held_candidate_waits_for_a_person(world: World) -> None:
    world.model()
    world.task("one")
    held = world.learn("one", promotion="manual")
    assert (held["status"], held["version"]) == ("awaiting_approval", 1)
    assert world.get("/models/triage")["champion"] == 0
    approved = world.ok(
        world.client.post(f"/v1/updates/{held['id']}/approve", json={"reason": "looks right"})
    )
    assert (approved["status"], approved["decided_by"]) == ("promoted", "key:acme-test")
    move = world.get("/models/triage/history")["data"][0]
    assert (move["kind"], move["to_version"], move["reason"]) == ("approved", 1, "looks right")
    again = world.client.post(f"/v1/updates/{held['id']}/reject")
    assert world.problem(again) == (409, "not_awaiting_approval")


def test_a_champion_that_moves_during_an_update_makes_the_candidate_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    for task, labels in SUBJECTS[:2]:
        world.task(task, labels)
    world.learn("one")
    while_training(monkeypatch, world.rollback)
    held = world.learn("two")
    assert (held["status"], held["parent_version"], held["compared_with"]) == ("awaiting_approval", 1, 0)
    assert world.get("/models/triage")["champion"] == 0


@pytest.mark.slow
def test_a_held_candidate_is_compared_again_when_the_champion_moves(world: World) -> None:
    world.model()
    for task, labels in SUBJECTS[:2]:
        world.task(task, labels)
    held = world.learn("one", promotion="manual")
    world.learn("two")  # becomes champion, version 2
    held = world.update(held["id"])
    assert (held["status"], held["compared_with"]) == ("awaiting_approval", 2)
    roles = {reason["task"]: reason for reason in held["verdict"]["reasons"]}
    assert set(roles) == {"one", "two"}  # what the new champion knows counts as well
    assert world.ok(world.client.post(f"/v1/updates/{held['id']}/approve"))["status"] == "promoted"
    assert world.get("/models/triage")["champion"] == 1


def test_a_stale_verdict_cannot_be_approved(world: World) -> None:
    world.model()
    world.task("one")
    first = world.learn("one", promotion="manual")
    world.client.put("/v1/models/triage/aliases/champion", json={"version": 1})
    assert world.update(first["id"])["status"] == "promoted"  # made champion by hand
    second = world.learn("one", relearn=True, promotion="manual")
    world.rollback()
    answer = world.client.post(f"/v1/updates/{second['id']}/approve")
    assert world.problem(answer) == (409, "verdict_stale")
    world.work()
    assert world.ok(world.client.post(f"/v1/updates/{second['id']}/approve"))["status"] == "promoted"


@pytest.mark.slow
def test_a_killed_trainer_is_tried_again_and_the_update_succeeds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("one")
    while_training(monkeypatch, kill_child)
    update = world.learn("one", training=LONG)
    assert (update["status"], update["attempt"], update["error"]) == ("promoted", 2, None)
    events = [event["type"] for event in world.get(f"/updates/{update['id']}/events")["data"]]
    assert events == ["queued", "training", "queued", "training", "evaluating", "promoted"]


def test_a_trainer_that_keeps_dying_fails_the_update_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("one")
    while_training(monkeypatch, kill_child, times=10)
    update = world.learn("one", training=LONG)
    assert update["status"] == "failed"
    assert update["error"]["code"] == "trainer_died"
    assert update["error"]["attempt"] == update["max_attempts"] == 3
    assert "SIGKILL" in update["error"]["message"]
    assert world.get("/models/triage")["champion"] == 0
    assert world.get("/models/triage/versions")["data"][-1]["version"] == 0


@pytest.mark.slow
def test_a_stopping_worker_gives_the_update_back_and_another_finishes_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("one")
    stopping = threading.Event()
    with monkeypatch.context() as patch:
        while_training(patch, stopping.set)
        update = world.request("one", training=LONG)
        world.work(stopping=stopping)
    given_back = world.update(update["id"])
    assert (given_back["status"], given_back["attempt"], given_back["version"]) == ("queued", 1, None)
    world.work()
    finished = world.update(update["id"])
    assert (finished["status"], finished["attempt"], finished["version"]) == ("promoted", 1, 1)


def test_a_running_update_can_be_cancelled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.model()
    world.task("one", train=20)
    update = world.request("one", training={**World.TRAINING, "epochs": 500})
    while_training(monkeypatch, lambda: world.client.post(f"/v1/updates/{update['id']}/cancel"))
    world.work()
    ended = world.update(update["id"])
    assert (ended["status"], ended["version"], ended["cancel_requested"]) == ("cancelled", None, True)
    assert world.problem(world.client.post(f"/v1/updates/{update['id']}/cancel")) == (409, "update_finished")


def test_a_worker_whose_lease_was_taken_writes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import text

    from service.db import EVERY_TENANT, session_scope
    from workers.housekeeping import sweep_updates

    def steal() -> None:
        with session_scope(tenant=EVERY_TENANT, role="worker") as session:
            session.execute(text("UPDATE updates SET lease_expires_at = now() - interval '1 second'"))
        sweep_updates()

    world.model()
    world.task("one")
    update = world.request("one", training={**World.TRAINING, "epochs": 500})
    while_training(monkeypatch, steal)
    assert world.work_once()
    ended = world.update(update["id"])
    assert (ended["status"], ended["attempt"], ended["error"]["code"]) == ("queued", 2, "lease_expired")


def test_a_damaged_parent_fails_the_update_and_leaves_the_champion(world: World) -> None:
    from service.artifacts import get_store

    world.model()
    for task, labels in SUBJECTS[:2]:
        world.task(task, labels)
    world.learn("one")
    sha256 = world.get("/models/triage/versions/1")["artifact"]["sha256"]
    path = Path(get_store()._path(sha256))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    update = world.learn("two")
    assert (update["status"], update["error"]["code"]) == ("failed", "artifact_damaged")
    assert world.get("/models/triage")["champion"] == 1
    assert world.client.get("/v1/models/triage/versions/1/adapter").status_code == 500


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a dozen trainings
def test_every_strategy_of_the_catalogue_carries_an_update_to_its_end(world: World) -> None:
    strategies = [entry["name"] for entry in world.get("/strategies")["data"]]
    assert {"sequential", "replay", "ewc", "joint"} <= set(strategies)
    for name in strategies:
        world.model(name)
        for task, labels in SUBJECTS[:2]:
            world.task(task, labels, model=name)
            update = world.learn(task, model=name, strategy={"name": name}, training=BRIEF)
            assert update["status"] == "promoted", (name, update["error"])
        scores: dict[str, Any] = {
            s["task"]: s["score"] for s in world.get(f"/models/{name}/versions/2")["scores"]
        }
        assert set(scores) == {"one", "two"}


@pytest.mark.slow
def test_a_person_erased_while_trained_on_is_not_learnt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("one")
    world.examples(
        "one", [{"text": "the one to be forgotten", "label": "os", "split": "train", "subject": "p1"}]
    )
    while_training(monkeypatch, lambda: world.client.delete("/v1/models/triage/examples?subject=p1"))
    update = world.learn("one", training=LONG)
    assert (update["status"], update["attempt"], update["version"]) == ("promoted", 1, 1)
    events = [event["type"] for event in world.get(f"/updates/{update['id']}/events")["data"]]
    assert events == ["queued", "training", "evaluating", "queued", "training", "evaluating", "promoted"]
    assert world.get("/models/triage/versions/1")["statistics"]["fresh_rows"] == 24


def test_a_cancel_is_heard_while_rows_are_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from workers import preparation

    world.model()
    world.task("one")
    update = world.request("one")
    original = preparation.write_rows

    def slow(*args: Any, **kwargs: Any) -> int:
        began = time.monotonic()
        assert world.client.post(f"/v1/updates/{update['id']}/cancel").status_code == 200
        assert time.monotonic() - began < 3  # the row is not locked meanwhile
        monkeypatch.setattr(preparation, "write_rows", original)
        return original(*args, **kwargs)

    monkeypatch.setattr(preparation, "write_rows", slow)
    world.work()
    assert world.update(update["id"])["status"] == "cancelled"


def test_an_artifact_in_use_by_an_unfinished_update_survives_the_sweep_of_orphans(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.artifacts import get_store
    from workers import pipeline
    from workers.housekeeping import ORPHAN_AGE_SECONDS, sweep_store

    original = pipeline.score_round

    def slow(**kwargs: Any) -> None:
        original(**kwargs)
        for sha256, _ in list(get_store().hashes()):
            then = Path(get_store()._path(sha256)).stat().st_mtime - ORPHAN_AGE_SECONDS - 60
            os.utime(get_store()._path(sha256), (then, then))
        sweep_store()

    world.model()
    world.task("one")
    monkeypatch.setattr(pipeline, "score_round", slow)
    assert world.learn("one")["status"] == "promoted"
    assert world.client.get("/v1/models/triage/versions/1/adapter").status_code == 200


def test_a_candidate_whose_artifact_is_deleted_as_it_is_recorded_stores_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was another's, too, until that one was purged in this very moment."""
    from service.registry.disposal import remove_unused
    from workers import pipeline

    original, deleted = pipeline.keep_artifacts, []

    def keep(trained: pipeline.Trained, work: Path) -> None:
        original(trained, work)
        if not deleted:
            deleted.append(remove_unused(trained.sha256, role="worker"))

    world.model()
    world.task("one")
    monkeypatch.setattr(pipeline, "keep_artifacts", keep)
    assert world.learn("one")["status"] == "promoted"
    assert deleted == [True]
    assert world.client.get("/v1/models/triage/versions/1/adapter").status_code == 200


def test_a_candidate_made_champion_by_hand_while_it_is_scored_again_is_promoted_once(world: World) -> None:
    from service.db import session_scope
    from service.registry.queries import get_champion, get_model
    from workers.pipeline import run_update

    world.model()
    for task, labels in SUBJECTS[:2]:
        world.task(task, labels)
    held = world.learn("one", promotion="manual")
    world.request("two")
    assert world.work_once()  # version 2 becomes champion; the held candidate wants to be compared again
    claim = world.claim()
    assert (claim.update_id, claim.rescore) == (held["id"], True)
    assert world.client.put("/v1/models/triage/aliases/champion", json={"version": 1}).status_code == 200
    run_update(claim, stopping=threading.Event())
    assert world.update(held["id"])["status"] == "promoted"
    assert world.get("/models/triage")["previous"] == 2
    with session_scope(tenant="acme") as session:
        assert get_champion(session, model=get_model(session, model="triage")).version == 1
