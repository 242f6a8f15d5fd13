"""The audit: every act that matters leaves an entry, and no entry can be changed."""

from collections.abc import Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.audit.commands import record
from service.db import session_scope
from service.models import AuditAction, Model
from service.registry.commands import promote
from service.registry.queries import get_model
from tests.scenes import World, make_client


def entries(world: World, *, action: str | None = None) -> list[dict[str, Any]]:
    """The tenant's entries, newest first; those of keys made for tests aside."""
    found = world.get("/audit" + (f"?action={action}" if action else ""))["data"]
    return [entry for entry in found if entry["actor"] != "command line"]


def newest(world: World) -> dict[str, Any]:
    """The latest entry."""
    return entries(world)[0]


def own_key(world: World) -> str:
    """The id of the key the world calls with."""
    return str(world.get("/keys")["data"][-1]["id"])


def with_versions(world: World, *numbers: int) -> Model:
    """A model with versions nobody trained, so that aliases have somewhere to go."""
    model = world.model()
    with session_scope(tenant="acme") as session:
        for number in numbers:
            session.execute(
                text(
                    "INSERT INTO versions (tenant_id, model_id, number, lineage, parameters, training, cut, labels,"
                    " statistics, provenance) VALUES ('acme', :model, :number, '{0}', '{}', '{}', 0, '[]', '{}', '{}')"
                ),
                {"model": model["id"], "number": number},
            )
        return get_model(session, model="triage")


def test_a_key_made_rotated_and_revoked_leaves_three_entries_that_name_the_acting_key(world: World) -> None:
    key = world.ok(world.client.post("/v1/keys", json={"name": "n", "scopes": ["read"]}))
    world.ok(world.client.post(f"/v1/keys/{key['id']}/rotate", json={"overlap_seconds": 60}))
    world.client.delete(f"/v1/keys/{key['id']}")
    world.client.delete(f"/v1/keys/{key['id']}")
    found = entries(world)
    assert [entry["action"] for entry in found] == ["key.revoked", "key.rotated", "key.created"]
    assert {entry["target"] for entry in found} == {key["id"]}
    assert {(entry["actor"], entry["key_id"]) for entry in found} == {("key:acme-test", own_key(world))}
    assert found[1]["data"]["overlap_seconds"] == 60
    assert found[2]["data"]["scopes"] == ["read"]


def test_a_changed_gate_is_audited_with_what_it_was(world: World) -> None:
    model = world.model()
    world.ok(world.client.patch("/v1/models/triage", json={"metadata": {"a": 1}}))
    assert entries(world) == []
    world.ok(world.client.patch("/v1/models/triage", json={"gate": {"max_regression": 0.5}}))
    entry = newest(world)
    assert (entry["action"], entry["target"]) == ("model.gate_changed", model["id"])
    assert entry["data"]["before"]["max_regression"] == 0.02
    assert entry["data"]["after"]["max_regression"] == 0.5


def test_moved_aliases_and_rollbacks_are_audited_with_versions_and_reason(world: World) -> None:
    with_versions(world, 1)
    world.ok(
        world.client.put("/v1/models/triage/aliases/champion", json={"version": 1, "reason": "hand-picked"})
    )
    entry = newest(world)
    assert entry["action"] == "alias.moved"
    assert entry["data"] == {
        "alias": "champion", "from_version": 0, "to_version": 1, "reason": "hand-picked", "update": None,
    }  # fmt: skip
    world.rollback()
    assert newest(world)["action"] == "champion.rolled_back"
    assert newest(world)["data"]["to_version"] == 0


@pytest.mark.parametrize(
    ("kind", "actions"),
    [("forced", ["champion.forced"]), ("approved", ["champion.approved"]), ("promoted", [])],
)
def test_a_worker_audits_a_forced_promotion_and_leaves_the_gates_own_to_the_history(
    world: World, kind: Any, actions: Sequence[str]
) -> None:
    with_versions(world, 1)
    with session_scope(tenant="acme", role="worker") as session:
        model = get_model(session, model="triage")
        promote(
            session, model=model, version=1, kind=kind, actor="key:someone", reason="r", update_id="upd_1"
        )
    assert [entry["action"] for entry in entries(world)] == actions
    assert all(entry["key_id"] is None and entry["actor"] == "key:someone" for entry in entries(world))


def test_a_rejected_candidate_is_audited(world: World) -> None:
    world.model()
    world.task("one")
    update = world.request("one")
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE updates SET state = 'awaiting_approval', version = 1"))
    world.ok(world.client.post(f"/v1/updates/{update['id']}/reject", json={"reason": "worse"}))
    entry = newest(world)
    assert (entry["action"], entry["target"]) == ("update.rejected", update["id"])
    assert entry["data"] == {"version": 1, "reason": "worse"}


def test_deletion_erasure_and_archiving_are_audited_without_anybodys_data(world: World) -> None:
    model = world.model()
    for task in ("one", "two"):
        world.ok(world.client.put(f"/v1/models/triage/tasks/{task}"))
        rows = [
            {"id": f"customer-{n}", "text": f"{task} {n}", "label": "a", "subject": "jane"} for n in range(3)
        ]
        world.examples(task, rows)
    world.client.delete("/v1/models/triage/tasks/one/examples/customer-0")
    world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "jane"}))
    world.client.delete("/v1/models/triage/tasks/two")
    world.client.delete("/v1/models/triage")
    world.client.delete("/v1/models/triage")
    found = entries(world)
    assert [entry["action"] for entry in found] == [
        "model.archived", "task.deleted", "subject.erased", "example.deleted",
    ]  # fmt: skip
    assert found[2]["target"] == model["id"]
    assert found[2]["data"]["deleted"] == 5
    assert len(found[3]["data"]["examples"]) == 1
    assert not [word for word in ("jane", "customer") if word in str(found)]


def test_what_was_refused_or_rolled_back_leaves_no_entry(world: World) -> None:
    world.model()
    assert world.client.post("/v1/models/triage/rollback", json={"reason": "x"}).status_code == 409
    assert world.client.post("/v1/keys", json={"name": "n", "scopes": ["none"]}).status_code == 422
    assert entries(world) == []


@pytest.mark.parametrize("role", ["app", "worker"])
@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_entries SET actor = 'nobody'", "DELETE FROM audit_entries", "TRUNCATE audit_entries"],
)
def test_no_role_of_the_service_can_change_or_delete_an_entry(
    database: str, role: Any, statement: str
) -> None:
    with (
        pytest.raises(Exception, match="permission denied"),
        session_scope(tenant="acme", role=role) as session,
    ):
        session.execute(text(statement))


def test_an_entry_cannot_be_written_for_another_tenant(world: World) -> None:
    with (
        pytest.raises(Exception, match="row-level security"),
        session_scope(tenant="globex", role="worker") as session,
    ):
        record(session, tenant="acme", actor="x", action=AuditAction.KEY_CREATED, target="key_1")


def test_a_tenant_reads_its_own_audit_by_action_and_page_by_page(
    world: World, other_client: TestClient
) -> None:
    for name in "abc":
        world.client.post("/v1/keys", json={"name": name, "scopes": ["read"]})
    assert len(entries(world, action="key.created")) == 3
    assert entries(world, action="key.revoked") == []
    page = world.get("/audit?limit=2")
    assert [entry["data"]["name"] for entry in page["data"]] == ["c", "b"]
    following = world.get(f"/audit?limit=2&cursor={page['next_cursor']}")["data"]
    assert following[0]["data"]["name"] == "a"
    assert "globex" not in str(entries(world))
    others = World.ok(other_client.get("/v1/audit"))["data"]
    assert [entry["data"]["name"] for entry in others] == ["globex-test"]


def test_the_audit_needs_the_scope_admin(database: str, redis_url: str) -> None:
    assert make_client("acme", "read", "deploy").get("/v1/audit").status_code == 403
