"""What retention removes, and what it leaves because a version stands on it."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from sqlalchemy import select, text

from service.artifacts import get_store
from service.db import session_scope
from service.models import Example, Model
from service.replay.queries import read_buffer
from service.updates.states import UpdateState, change_state
from tests.scenes import World
from tests.service.storage.scenes import rows, version
from workers import housekeeping
from workers.preparation import prepare_update

MODEL = "/v1/models/triage"


def keep(world: World, **retention: int) -> None:
    world.ok(world.client.patch(MODEL, json={"retention": retention}))


def age(days: int, *, only: str = "%") -> None:
    """Makes stored rows look older."""
    with session_scope(tenant="acme") as session:
        session.execute(
            text(
                "UPDATE examples SET created_at = created_at - make_interval(days => :days) WHERE external_id LIKE :only"
            ),
            {"days": days, "only": only},
        )


def stored(pattern: str = "%") -> set[str | None]:
    with session_scope(tenant="acme") as session:
        return set(session.scalars(select(Example.external_id).where(Example.external_id.like(pattern))))


def buffer_of(lineage: Iterable[int]) -> set[str | None]:
    with session_scope(tenant="acme") as session:
        model = session.query(Model).one()
        ids = read_buffer(session, model=model, lineage=list(lineage), cut=model.last_batch).example_ids
        return set(session.scalars(select(Example.external_id).where(Example.id.in_(ids))))


@pytest.fixture
def learnt(world: World, tmp_path: Path) -> World:
    """A model with a buffer of five that has learnt a task of 40 rows; another task waits."""
    world.model(replay={"capacity": 5})
    for task in ("old", "waiting"):
        world.ok(world.client.put(f"{MODEL}/tasks/{task}"))
    world.examples("old", rows("old", 40) + rows("old", 4, split="eval"))
    world.examples("waiting", rows("waiting", 6) + rows("waiting", 2, split="eval"))
    version(tmp_path, number=1, lineage=[0, 1], learns="old")
    return world


def test_old_examples_go_but_the_buffer_and_the_eval_rows_of_learnt_tasks_stay(learnt: World) -> None:
    buffered = buffer_of([0, 1])
    age(31)
    keep(learnt, examples_days=30)
    housekeeping.sweep_retention()
    assert len(buffered) == 5
    assert stored() == buffered | {f"old-eval-{at}" for at in range(4)}
    assert buffer_of([0, 1]) == buffered


def test_young_examples_and_models_without_retention_are_left_alone(learnt: World) -> None:
    age(31)
    everything = stored()
    housekeeping.sweep_retention()
    assert stored() == everything
    age(-2, only="waiting%")
    keep(learnt, examples_days=30)
    housekeeping.sweep_retention()
    assert stored("waiting%") == {row["id"] for row in rows("waiting", 6) + rows("waiting", 2, split="eval")}
    assert len(stored("old-train%")) == 5


def test_the_buffers_of_a_rollbacks_goal_and_of_an_aliased_branch_stay_too(
    learnt: World, tmp_path: Path
) -> None:
    version(tmp_path, number=2, lineage=[0, 2], learns="waiting", champion=False)
    version(tmp_path, number=3, lineage=[0, 1, 3], learns="waiting")
    learnt.ok(learnt.client.put(f"{MODEL}/aliases/trial", json={"version": 2}))
    before = {head: buffer_of(lineage) for head, lineage in ((1, [0, 1]), (2, [0, 2]), (3, [0, 1, 3]))}
    age(31)
    keep(learnt, examples_days=30)
    housekeeping.sweep_retention()
    assert {1: buffer_of([0, 1]), 2: buffer_of([0, 2]), 3: buffer_of([0, 1, 3])} == before
    assert stored("%train%") == set().union(*before.values())


def test_examples_stay_while_an_update_is_about_to_read_them(learnt: World) -> None:
    learnt.request("waiting")
    age(31)
    keep(learnt, examples_days=30)
    everything = stored()
    housekeeping.sweep_retention()
    assert stored() == everything
    claim = learnt.claim()
    with session_scope(tenant="acme", role="worker") as session:
        change_state(session, update_id=claim.update_id, to=UpdateState.CANCELLED)
    housekeeping.sweep_retention()
    assert stored() < everything


def test_a_large_removal_goes_in_bounded_batches(learnt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "RETENTION_BATCH", 10)
    monkeypatch.setattr(housekeeping, "RETENTION_BATCHES", 2)
    age(31)
    keep(learnt, examples_days=30)
    counts = [len(stored())]
    for _ in range(3):
        housekeeping.sweep_retention()
        counts.append(len(stored()))
    assert counts == [52, 32, 12, 9]


def test_adapters_past_the_limit_go_and_leave_tombstones(learnt: World, tmp_path: Path) -> None:
    hashes = {2: version(tmp_path, number=2, lineage=[0, 1, 2], learns="waiting", champion=False)}
    hashes[3] = version(tmp_path, number=3, lineage=[0, 1, 3], learns="waiting")
    hashes[4] = version(tmp_path, number=4, lineage=[0, 1, 4], learns="waiting", champion=False)
    keep(learnt, versions=1)
    housekeeping.sweep_retention()
    assert [get_store().holds(hashes[number]) for number in (2, 3, 4)] == [False, True, True]
    tombstone = learnt.get("/models/triage/versions/2")
    assert tombstone["artifact"] is None
    assert tombstone["artifact_removed_at"] is not None
    assert learnt.get("/models/triage/versions/1")["artifact"] is not None, "an ancestor of the champion"
    call = learnt.client.get(f"{MODEL}/versions/2/adapter")
    assert learnt.problem(call) == (410, "artifact_removed")


def test_the_version_a_rollback_left_keeps_its_adapter(learnt: World, tmp_path: Path) -> None:
    left = version(tmp_path, number=2, lineage=[0, 2], learns="waiting")
    version(tmp_path, number=3, lineage=[0, 1, 3], learns="waiting", champion=False)
    learnt.rollback()
    keep(learnt, versions=1)
    housekeeping.sweep_retention()
    assert get_store().holds(left)
    learnt.rollback(to=2)


def test_nothing_starts_from_a_removed_adapter(learnt: World, tmp_path: Path) -> None:
    version(tmp_path, number=2, lineage=[0, 1, 2], learns="waiting", champion=False)
    version(tmp_path, number=3, lineage=[0, 1, 3], learns="old", champion=False)
    keep(learnt, versions=1)
    housekeeping.sweep_retention()
    for method, path, body in (
        ("POST", "/rollback", {"to": 2, "reason": "test"}),
        ("PUT", "/aliases/trial", {"version": 2}),
        ("PUT", "/aliases/champion", {"version": 2}),
        ("POST", "/updates", {"tasks": ["waiting"], "parent": 2, "relearn": True}),
    ):
        answer = learnt.client.request(method, MODEL + path, json=body)
        assert learnt.problem(answer) == (409, "artifact_removed"), path


def test_a_parent_whose_adapter_went_after_the_request_fails_the_update_and_never_trains_from_the_base(
    learnt: World, tmp_path: Path
) -> None:
    from service.errors import Conflict

    learnt.request("waiting")
    claim = learnt.claim()
    with session_scope(tenant="acme", role="worker") as session:
        session.execute(
            text("UPDATE versions SET artifact_sha256 = NULL, artifact_removed_at = now() WHERE number = 1")
        )
    with pytest.raises(Conflict, match="removed"):
        prepare_update(claim, work=tmp_path / "work")


def test_the_parent_of_a_waiting_update_keeps_its_adapter(learnt: World, tmp_path: Path) -> None:
    branch = version(tmp_path, number=2, lineage=[0, 2], learns="waiting", champion=False)
    version(tmp_path, number=3, lineage=[0, 1, 3], learns="waiting", champion=False)
    learnt.request("old", parent=2)
    keep(learnt, versions=1)
    housekeeping.sweep_retention()
    assert get_store().holds(branch)


def test_events_of_updates_that_ended_long_ago_go(learnt: World) -> None:
    ended, running = learnt.request("waiting"), learnt.request("waiting")
    learnt.ok(learnt.client.post(f"/v1/updates/{ended['id']}/cancel"))
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE updates SET finished_at = finished_at - interval '8 days'"))
    keep(learnt, events_days=7)
    housekeeping.sweep_retention()
    assert learnt.get(f"/updates/{ended['id']}/events")["data"] == []
    assert learnt.get(f"/updates/{ended['id']}")["status"] == "cancelled"
    assert len(learnt.get(f"/updates/{running['id']}/events")["data"]) == 1


def test_retention_is_shown_replaced_as_a_whole_and_needs_admin(world: World) -> None:
    from tests.scenes import make_client

    world.model()
    assert world.get("/models/triage")["retention"] == {
        "examples_days": None, "versions": None, "events_days": None,
    }  # fmt: skip
    keep(world, examples_days=30, versions=5)
    keep(world, events_days=7)
    assert world.get("/models/triage")["retention"] == {
        "examples_days": None, "versions": None, "events_days": 7,
    }  # fmt: skip
    ingester = make_client("acme", "ingest")
    answer = ingester.patch(MODEL, json={"retention": {"examples_days": 1}})
    assert world.problem(answer) == (403, "missing_scope")
    assert world.client.patch(MODEL, json={"retention": {"examples_days": 0}}).status_code == 422
