"""Blends: updates whose version lies between another one and its parent. Real versions, nothing mocked."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from torch import Tensor

from service.db import engine_for, session_scope
from service.models import Model, ReplayEntry, Update, Version, VersionTask
from service.replay.queries import read_buffer
from tests.conftest import emptied
from tests.scenes import World, docstrings, make_client
from tests.workers.evaluation.test_runner import plain_predictions
from workers.training.adapters import Adapter, read_adapter
from workers.training.contract import BaseFolder

FORGETFUL: dict[str, Any] = {
    "strategy": {"name": "sequential"},
    "training": {**World.TRAINING, "epochs": 6},
}
BETA = 0.6


def blend(world: World, version: int, **body: object) -> dict[str, Any]:
    """Asks for a blend, promoted by the verdict unless said otherwise, works it off, and returns how it ended."""
    update = world.ok(
        world.client.post(f"/v1/models/triage/versions/{version}/blend", json={"beta": BETA, **body})
    )
    world.work()
    return world.update(update["id"])


def unpacked(world: World, version: int, folder: Path) -> Path:
    """The version's folder as it is downloaded."""
    tar = world.client.get(f"/v1/models/triage/versions/{version}/adapter").content
    target = folder / str(version)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(target, filter="data")
    return target


def products(adapter: Adapter) -> dict[str, Tensor]:
    return {name: scaling * (b @ a) for name, a, b, scaling in adapter.factors()}


def rows(statement: sa.Select[Any]) -> list[tuple[Any, ...]]:
    with session_scope(tenant="acme") as session:
        return sorted(tuple(row) for row in session.execute(statement))


@pytest.fixture(scope="module")
def world(database_url: str, redis_url: str) -> Iterator[World]:
    """Two updates, the second without rehearsal and held; blends of it are versions 3 and on."""
    emptied(database_url)
    world = World(make_client("acme"))
    world.model(replay={"capacity": 10}, gate={"max_regression": 1.0})
    world.task("one")
    world.task("two", ("random", "socket"))
    row = {"text": docstrings("string")[0], "label": "socket", "split": "train", "subject": "anna"}
    world.examples("two", [row])
    world.learn("one", **FORGETFUL)
    world.learn("two", **{**FORGETFUL, "promotion": "manual"})
    yield world
    emptied(database_url)


@pytest.fixture(scope="module")
def blended(world: World) -> dict[str, Any]:
    """The blend that most tests look at, promoted by the gate."""
    return blend(world, 2)


def test_a_blend_goes_through_the_gate_like_any_update_and_trains_nothing(
    world: World, blended: dict[str, Any]
) -> None:
    assert (blended["status"], blended["decided_by"], blended["version"]) == ("promoted", "gate", 3)
    assert blended["strategy"] == {"name": "blend", "parameters": {"beta": BETA, "of": 2}}
    assert {reason["task"]: reason["rule"] for reason in blended["verdict"]["reasons"]} == {
        "one": "max_regression",
        "two": "new_task_regression",
    }
    version = world.get("/models/triage/versions/3")
    assert (version["parent"], version["lineage"], version["tasks"]) == (1, [0, 1, 3], ["two"])
    assert version["labels"] == world.get("/models/triage/versions/2")["labels"]
    assert (version["statistics"]["steps"], version["statistics"]["fresh_rows"]) == (0, 0)
    events = [event["type"] for event in world.get(f"/updates/{blended['id']}/events")["data"]]
    assert events == ["queued", "training", "evaluating", "promoted"]
    roles = {task["task"]: task["role"] for task in world.get("/models/triage/versions/3/report")["tasks"]}
    assert roles == {"one": "old", "two": "new"}


def test_a_version_that_several_devices_trained_is_blended_by_one(
    world: World, blended: dict[str, Any], database_url: str
) -> None:
    with engine_for(database_url).begin() as connection:
        connection.execute(sa.text("SET LOCAL ROLE palimpsest_owner"))
        connection.execute(
            sa.text("UPDATE versions SET training = jsonb_set(training, '{devices}', '2') WHERE number = 2")
        )
    again = blend(world, 2, promotion="manual")
    assert (again["status"], again["error"]) == ("awaiting_approval", None)


def test_its_change_of_weights_is_the_weighted_sum_of_both_and_its_head_moves_only_old_labels(
    world: World, blended: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    folders = [unpacked(world, number, tmp_path) for number in (1, 2, 3)]
    parent, child, between = (products(read_adapter(folder)) for folder in folders)
    for name, found in between.items():
        expected = (1 - BETA) * parent[name] + BETA * child[name]
        assert torch.allclose(found, expected, atol=1e-5), name
        assert not torch.allclose(found, child[name], atol=1e-5), name
    old, new, head = (load_file(folder / "head.safetensors") for folder in folders)
    for name in ("weight", "bias"):
        assert torch.allclose(head[name][:2], (1 - BETA) * old[name] + BETA * new[name][:2], atol=1e-6)
        assert torch.equal(head[name][2:], new[name][2:])


def test_nothing_is_fresh_that_the_version_had_learnt_and_the_buffer_is_the_same(
    world: World, blended: dict[str, Any]
) -> None:
    learnt = {
        number: rows(
            sa.select(
                VersionTask.task_id, VersionTask.after_batch, VersionTask.up_to_batch, VersionTask.rows
            ).where(VersionTask.version == number)
        )
        for number in (2, 3)
    }
    assert learnt[3] == learnt[2]
    assert learnt[3]
    admitted = {
        number: rows(
            sa.select(ReplayEntry.stratum, ReplayEntry.priority, ReplayEntry.example_id).where(
                ReplayEntry.version == number
            )
        )
        for number in (2, 3)
    }
    assert admitted[3] == admitted[2]
    with session_scope(tenant="acme") as session:
        model = session.scalars(sa.select(Model)).one()
        buffers = [
            read_buffer(session, model=model, lineage=lineage, cut=model.last_batch)
            for lineage in ([0, 1, 2], [0, 1, 3])
        ]
    assert buffers[0] == buffers[1]
    assert len(buffers[0].entries) == 10
    again = world.client.post("/v1/models/triage/updates", json={"tasks": ["two"], "parent": 3})
    assert world.problem(again) == (422, "nothing_to_learn")


@pytest.mark.slow
def test_its_download_predicts_without_palimpsest_what_was_scored(
    world: World, blended: dict[str, Any], minilm: BaseFolder, tmp_path: Path
) -> None:
    outcomes = world.get("/models/triage/versions/3/outcomes?limit=100")["data"]
    texts = [outcome["content"]["text"] for outcome in outcomes]
    predicted = plain_predictions(str(unpacked(world, 3, tmp_path)), minilm, texts)
    assert predicted == [outcome["predicted"] for outcome in outcomes]


def test_a_person_can_roll_back_to_a_blend_and_from_it(world: World, blended: dict[str, Any]) -> None:
    assert world.rollback()["champion"] == 1
    assert world.rollback(to=3)["champion"] == 3


def test_the_same_blend_has_the_same_parameters_bit_for_bit_and_leaves_no_state(
    world: World, blended: dict[str, Any], tmp_path: Path
) -> None:
    world.rollback(to=1)
    again = blend(world, 2, promotion="manual", metadata={"why": "again"})
    assert (again["status"], again["metadata"]) == ("awaiting_approval", {"why": "again"})
    first, second = (unpacked(world, number, tmp_path) for number in (3, again["version"]))
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert rows(sa.select(Version.state_sha256).where(Version.number == 3)) == [(None,)]
    world.rollback(to=3)


def test_a_champion_that_is_not_the_parent_makes_a_blend_wait_and_says_so_at_the_request(
    world: World, blended: dict[str, Any]
) -> None:
    held = blend(world, 2)
    assert (held["status"], held["compared_with"]) == ("awaiting_approval", 3)
    assert [warning for warning in held["warnings"] if "a person decides" in warning]


def test_a_blend_with_the_base_scales_the_adapter_and_keeps_the_head(
    world: World, blended: dict[str, Any], tmp_path: Path
) -> None:
    held = blend(world, 1, promotion="manual")
    assert (held["status"], held["parent_version"]) == ("awaiting_approval", 0)
    child, between = unpacked(world, 1, tmp_path), unpacked(world, held["version"], tmp_path)
    for name, found in products(read_adapter(between)).items():
        assert torch.allclose(found, BETA * products(read_adapter(child))[name], atol=1e-6)
    assert (child / "head.safetensors").read_bytes() == (between / "head.safetensors").read_bytes()


@pytest.mark.slow
def test_a_blend_can_be_learnt_from_and_blended_again(
    world: World, blended: dict[str, Any], tmp_path: Path
) -> None:
    twice = blend(world, 3, promotion="manual", beta=0.5)
    assert world.get(f"/models/triage/versions/{twice['version']}")["lineage"] == [0, 1, twice["version"]]
    parent, between, found = (
        products(read_adapter(unpacked(world, number, tmp_path))) for number in (1, 3, twice["version"])
    )
    for name in found:
        assert torch.allclose(found[name], 0.5 * parent[name] + 0.5 * between[name], atol=1e-5)
    world.task("three", ("string", "shutil"))
    learnt = world.learn("three", parent=3, strategy={"name": "ewc"}, promotion="manual")
    assert learnt["status"] == "awaiting_approval", (
        "the state that a blend has not is rebuilt from the buffer"
    )


def test_requests_that_cannot_be_are_refused_with_the_reason(world: World, blended: dict[str, Any]) -> None:
    def problem(version: int, **body: object) -> tuple[int, str]:
        return world.problem(
            world.client.post(f"/v1/models/triage/versions/{version}/blend", json={"beta": 0.5, **body})
        )

    assert problem(0) == (422, "no_parent")
    assert problem(99) == (404, "version_not_found")
    for beta in (0, 1, -0.1, 1.5, "NaN", None):
        assert problem(2, beta=beta)[0] == 422
    trained = world.client.post(
        "/v1/models/triage/updates", json={"tasks": ["two"], "strategy": {"name": "blend", "beta": 0.5}}
    )
    assert world.problem(trained) == (422, "unknown_strategy")
    assert "blend" not in [strategy["name"] for strategy in world.get("/strategies")["data"]]
    for name in ("turned", "dora"):
        world.model(name, adapter={"type": "oft"} if name == "turned" else {"type": "lora", "use_dora": True})
        with session_scope(tenant="acme", role="worker") as session:
            model = session.scalars(sa.select(Model).where(Model.name == name)).one()
            session.add(
                Version(
                    tenant_id="acme", model_id=model.id, number=1, parent=0, lineage=[0, 1], parameters={}, training={},
                    cut=0, labels=[], statistics={}, provenance={},
                )
            )  # fmt: skip
        answer = world.client.post(f"/v1/models/{name}/versions/1/blend", json={"beta": 0.5})
        assert world.problem(answer) == (422, "strategy_not_applicable")


def test_what_a_version_learnt_from_an_erased_subject_its_blends_have_too_though_they_do_not_descend_from_it(
    world: World, blended: dict[str, Any]
) -> None:
    def erased() -> dict[str, Any]:
        return world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "anna"}))

    assert {2, 3} <= set(erased()["versions"]), "blends made before it admitted the row themselves"
    late = blend(world, 2, promotion="manual")["version"]
    world.ok(world.client.put("/v1/models/triage/tasks/four"))
    splits = ("train", "train", "eval")
    world.examples(
        "four", [{"text": f"row {at}", "label": "four", "split": split} for at, split in enumerate(splits)]
    )
    upon = world.learn("four", parent=late, promotion="manual", training={"max_steps": 1})["version"]
    assert {late, upon} <= set(erased()["inherited_by"])
    assert 1 not in erased()["inherited_by"]


def test_what_retention_removed_is_gone_and_what_a_queued_blend_is_made_of_stays(
    world: World, blended: dict[str, Any]
) -> None:
    from workers.housekeeping import sweep_retention

    world.ok(world.client.put("/v1/models/triage/aliases/champion", json={"version": 0}))
    waiting = world.ok(world.client.post("/v1/models/triage/versions/2/blend", json={"beta": 0.5}))
    for held in world.get("/models/triage/updates?status=awaiting_approval")["data"]:
        world.ok(world.client.post(f"/v1/updates/{held['id']}/reject"))
    world.ok(world.client.patch("/v1/models/triage", json={"retention": {"versions": 1}}))
    # Twice, so that neither the champion nor where a rollback goes is version 2 or built on it.
    world.ok(world.client.put("/v1/models/triage/aliases/champion", json={"version": 1}))
    sweep_retention()
    assert world.get("/models/triage/versions/2")["artifact"] is not None
    world.ok(world.client.post(f"/v1/updates/{waiting['id']}/cancel"))
    sweep_retention()
    assert world.get("/models/triage/versions/2")["artifact"] is None
    answer = world.client.post("/v1/models/triage/versions/2/blend", json={"beta": 0.5})
    assert world.problem(answer) == (410, "artifact_removed")
    with session_scope(tenant="acme") as session:
        assert session.get_one(Update, {"tenant_id": "acme", "id": waiting["id"]}).version is None
