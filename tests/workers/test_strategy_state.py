"""What a strategy leaves for the next update: stored apart from the version, dropped when its rows are erased."""

import io
import tarfile
from typing import Any

import pytest
import sqlalchemy as sa

from service.artifacts import get_store
from service.db import session_scope
from service.models import Version
from tests.scenes import World, docstrings

EWC = {"name": "ewc"}


def stored_state(world: World, version: int) -> str | None:
    with session_scope(tenant="acme") as session:
        return session.scalar(sa.select(Version.state_sha256).where(Version.number == version))


def learn_with_a_subject(world: World) -> dict[str, Any]:
    """Version 1 learns a task, one row of which belongs to a data subject."""
    world.task("one", ("math", "os"))
    text = docstrings("random")[0]
    world.examples("one", [{"text": text, "label": "os", "split": "train", "subject": "anna"}])
    return world.learn("one", strategy=EWC)


def test_state_is_no_part_of_the_adapter_that_is_served(world: World) -> None:
    world.model()
    assert learn_with_a_subject(world)["status"] == "promoted"
    assert stored_state(world, 1) is not None
    tar = world.client.get("/v1/models/triage/versions/1/adapter").content
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = archive.getnames()
    assert "adapter_model.safetensors" in names
    assert not [name for name in names if name.startswith("state")]


def test_an_erasure_drops_what_was_derived_from_the_erased_rows_and_nothing_else(world: World) -> None:
    world.model(replay={"capacity": 20})
    learn_with_a_subject(world)
    world.task("two", ("random", "socket"))
    assert world.learn("two", strategy=EWC)["status"] == "promoted"
    dropped = [stored_state(world, 1), stored_state(world, 2)]
    world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "anna"}))
    assert [stored_state(world, 1), stored_state(world, 2)] == [None, None]
    assert [get_store().holds(sha256) for sha256 in dropped if sha256] == [False, False]
    assert world.client.get("/v1/models/triage/versions/2/adapter").status_code == 200


@pytest.mark.slow
def test_the_next_update_rebuilds_dropped_state_from_the_buffer(world: World) -> None:
    world.model(replay={"capacity": 20})
    learn_with_a_subject(world)
    world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "anna"}))
    world.task("two", ("random", "socket"))
    assert world.learn("two", strategy=EWC)["status"] == "promoted"


def test_without_state_and_without_a_buffer_the_update_fails_and_says_why(world: World) -> None:
    world.model(replay={"capacity": 0})
    learn_with_a_subject(world)
    world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "anna"}))
    world.task("two", ("random", "socket"))
    update = world.learn("two", strategy=EWC)
    assert update["status"] == "failed"
    assert update["error"]["code"] == "strategy_state_missing"


def test_an_example_that_no_version_learnt_leaves_every_state_alone(world: World) -> None:
    world.model()
    learn_with_a_subject(world)
    world.examples("one", [{"id": "late", "text": "a late row", "label": "os", "split": "train"}])
    world.client.delete("/v1/models/triage/tasks/one/examples/late")
    assert stored_state(world, 1) is not None


@pytest.mark.slow
def test_a_guarded_task_is_evaluated_and_judged_though_nobody_learns_it(world: World) -> None:
    world.model()
    world.task("one", ("math", "os"))
    world.learn("one")
    world.task("golden", ("string", "shutil"), train=0, held=8)
    world.ok(world.client.put("/v1/models/triage/tasks/golden", json={"guarded": True}))
    world.task("two", ("random", "socket"))
    update = world.learn("two")
    judged = {reason["task"]: reason["rule"] for reason in update["verdict"]["reasons"]}
    assert judged["golden"] == "max_regression"
    report = world.get("/models/triage/versions/2/report")
    roles = {task["task"]: task["role"] for task in report["tasks"]}
    assert roles == {"one": "old", "golden": "old", "two": "new"}
    assert world.get("/models/triage/tasks/golden")["guarded"] is True
