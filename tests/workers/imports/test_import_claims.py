"""What an import is said to have learnt: rehearsed, no news to later updates, and found by erasures."""

import io
import tarfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.db import session_scope
from service.models import ReplayEntry, VersionTask
from tests.scenes import World
from tests.workers.imports.adapters import (
    downloaded,
    imported,
    packed,
    send,
)


def test_its_rows_are_learnt_and_rehearsed_and_no_news_to_a_later_update(
    world: World, first: dict[str, Any]
) -> None:
    with session_scope(tenant="acme") as session:
        learnt = session.scalars(sa.select(VersionTask).where(VersionTask.version == 1)).one()
        entries = session.scalar(
            sa.select(sa.func.count()).select_from(ReplayEntry).where(ReplayEntry.version == 1)
        )
    assert (learnt.after_batch, learnt.rows, entries) == (0, 24, 24)
    answer = world.client.post("/v1/models/triage/updates", json={"tasks": ["one"]})
    assert world.problem(answer) == (422, "nothing_to_learn")


def test_with_fresh_rows_it_knows_the_task_and_the_next_update_learns_all_of_them(
    world: World, first: dict[str, Any], trained_elsewhere: Path
) -> None:
    held = imported(world, packed(trained_elsewhere), rows="fresh")
    assert held["status"] == "awaiting_approval"  # the champion, by now version 1, is not its parent
    assert any("a person decides" in warning for warning in held["warnings"])
    assert {reason["task"]: reason["rule"] for reason in held["verdict"]["reasons"]} == {
        "one": "max_regression"
    }
    version = held["version"]
    assert world.get(f"/models/triage/versions/{version}")["tasks"] == ["one"]
    asked = world.request("one", parent=version, promotion="manual", strategy={"name": "sequential"})
    assert asked["warnings"] == [] or all("has no rows" not in warning for warning in asked["warnings"])
    world.ok(world.client.post(f"/v1/updates/{asked['id']}/cancel"))
    with session_scope(tenant="acme") as session:
        assert not session.scalar(
            sa.select(ReplayEntry.example_id).where(ReplayEntry.version == version).limit(1)
        )
    world.client.post(f"/v1/updates/{held['id']}/reject")


def test_rows_erased_before_the_worker_came_end_the_claim_to_have_learnt_them(
    world: World, trained_elsewhere: Path
) -> None:
    world.examples(
        "one",
        [{"text": "a row of bob's", "label": "os", "split": "train", "subject": "bob", "id": "bobs"}],
    )
    update = world.ok(send(world, packed(trained_elsewhere)))
    world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "bob"}))
    world.work()
    failed = world.update(update["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "claim_outdated")


def test_a_later_erasure_taints_it_by_the_rows_it_claims(world: World, trained_elsewhere: Path) -> None:
    row = {"text": "a row of eve's", "label": "os", "split": "train", "subject": "eve"}
    world.examples("one", [row])
    learnt = imported(world, packed(trained_elsewhere), promotion="manual")
    fresh = imported(world, packed(trained_elsewhere), promotion="manual", rows="fresh")
    erasure = world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "eve"}))
    assert erasure["versions"] == [learnt["version"]]
    with tarfile.open(fileobj=io.BytesIO(downloaded(world, learnt["version"]))) as version:
        facts = version.extractfile("version.json")
        assert facts is not None
        named = packed(trained_elsewhere, version__json=facts.read())
    for tar in (packed(trained_elsewhere), downloaded(world, learnt["version"]), named):
        assert world.problem(send(world, tar, rows="fresh")) == (409, "tainted_adapter")
    assert send(world, downloaded(world, fresh["version"]), promotion="manual").status_code == 202
    for update in (learnt, fresh):
        world.client.post(f"/v1/updates/{update['id']}/reject")
