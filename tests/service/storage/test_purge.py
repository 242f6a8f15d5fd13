"""Purging archived models, and what is stored before and after."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.artifacts import get_store
from service.db import engine_for, session_scope
from service.models import Base
from tests.scenes import World, make_client
from tests.service.storage.scenes import rows, version

PURGE = "/v1/models/triage/purge"


@pytest.fixture
def grown(world: World, tmp_path: Path) -> World:
    """A model with a task, a version, an update and stored answers."""
    world.model()
    world.ok(world.client.put("/v1/models/triage/tasks/old"))
    world.examples("old", rows("old", 10) + rows("old", 3, split="eval"))
    version(tmp_path, number=1, lineage=[0, 1], learns="old")
    body = {"tasks": ["old"], "relearn": True, "training": world.TRAINING}
    world.ok(world.client.post("/v1/models/triage/updates", json=body, headers={"Idempotency-Key": "u"}))
    return world


def archive(world: World) -> None:
    for update in world.get("/models/triage/updates")["data"]:
        world.client.post(f"/v1/updates/{update['id']}/cancel")
    assert world.client.delete("/v1/models/triage").status_code == 204


def left_of(database: str, model_id: str) -> dict[str, int]:
    """Rows of each table that name the model; looked at as the owner, past row-level security."""
    counts = {}
    with engine_for(database).begin() as connection:
        connection.execute(text("SET LOCAL ROLE palimpsest_owner"))
        for table in Base.metadata.sorted_tables:
            column = "id" if table.name == "models" else "model_id"
            if column in table.columns:
                query = f"SELECT count(*) FROM {table.name} WHERE {column} = :model"
                counts[table.name] = connection.scalar(text(query), {"model": model_id}) or 0
        counts["update_events"] = connection.scalar(text("SELECT count(*) FROM update_events")) or 0
        counts["idempotency_keys"] = connection.scalar(text("SELECT count(*) FROM idempotency_keys")) or 0
    return counts


def test_a_purge_leaves_nothing_and_frees_the_name(grown: World, database: str) -> None:
    model = grown.get("/models/triage")
    artifact = grown.get("/models/triage/versions/1")["artifact"]
    archive(grown)
    assert sum(left_of(database, model["id"]).values()) > 0
    gone = grown.ok(grown.client.post(PURGE))
    assert (gone["id"], gone["examples"], gone["versions"], gone["artifacts"]) == (model["id"], 13, 1, 1)
    assert set(left_of(database, model["id"]).values()) == {0}
    assert not get_store().holds(artifact["sha256"])
    assert grown.problem(grown.client.post(PURGE)) == (404, "model_not_found")
    assert grown.model()["id"] != model["id"]


def test_a_repeat_after_a_purge_is_a_new_request(grown: World) -> None:
    call = {"json": {"examples": rows("kept", 3)}, "headers": {"Idempotency-Key": "rows"}}
    url = "/v1/models/triage/tasks/old/examples"
    assert grown.ok(grown.client.post(url, **call))["accepted"] == 3
    archive(grown)
    grown.ok(grown.client.post(PURGE))
    grown.model()
    grown.ok(grown.client.put("/v1/models/triage/tasks/old"))
    again = grown.client.post(url, **call)
    assert grown.ok(again)["accepted"] == 3
    assert "Idempotent-Replayed" not in again.headers
    assert grown.get("/models/triage/tasks/old")["counts"]["train"] == 3


def test_an_artifact_that_another_tenant_refers_to_survives(grown: World) -> None:
    make_client("globex").post(
        "/v1/models", json={"name": "twin", "base_model": "minilm-l6", "task_type": "text-classification"}
    )
    artifact = grown.get("/models/triage/versions/1")["artifact"]
    with session_scope(tenant="globex", role="worker") as session:
        session.execute(
            text("UPDATE versions SET artifact_sha256 = :sha256, artifact_bytes = :bytes"), artifact
        )
    archive(grown)
    assert grown.ok(grown.client.post(PURGE))["artifacts"] == 1
    assert get_store().holds(artifact["sha256"])


def test_only_archived_models_are_purged_and_only_by_admins(grown: World) -> None:
    assert grown.problem(grown.client.post(PURGE)) == (409, "model_not_archived")
    archive(grown)
    deployer = make_client("acme", "read", "ingest", "train", "deploy")
    assert grown.problem(deployer.post(PURGE)) == (403, "missing_scope")
    assert grown.get("/models/triage")["archived_at"] is not None


def test_another_tenant_cannot_purge(grown: World, other_client: TestClient) -> None:
    archive(grown)
    assert grown.problem(other_client.post(PURGE)) == (404, "model_not_found")


def test_a_model_whose_candidate_is_being_scored_is_not_purged(grown: World) -> None:
    claim = grown.claim()
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE models SET archived_at = now()"))
    assert grown.problem(grown.client.post(PURGE)) == (409, "model_busy")
    assert grown.update(claim.update_id)["status"] == "training"


def test_storage_is_counted_by_model_and_in_all(grown: World, other_client: TestClient) -> None:
    grown.model("empty")
    read = grown.get("/storage")
    assert [model["model"] for model in read["models"]] == ["triage", "empty"]
    triage, empty = read["models"]
    assert (triage["examples"], triage["versions"], triage["replay_entries"], triage["artifacts"]) == (
        13,
        1,
        10,
        1,
    )
    assert triage["artifact_bytes"] == grown.get("/models/triage/versions/1")["artifact"]["bytes"]
    assert triage["example_bytes"] >= 13 * len('{"text": "old train 0"}')
    assert {empty[name] for name in read["total"]} == {0}
    assert read["total"] == {name: triage[name] for name in read["total"]}
    assert other_client.get("/v1/storage").json()["models"] == []
