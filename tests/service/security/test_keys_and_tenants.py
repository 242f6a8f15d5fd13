"""Who may do what: keys, scopes, tenants, and the walls in the database itself."""

from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import session_scope
from service.security import create_key, revoke_key
from tests.scenes import World, make_client


def test_a_call_without_a_key_or_with_a_wrong_one_is_401(client: TestClient) -> None:
    good = client.headers["Authorization"]
    wrong_secret = good[:-1] + ("0" if good[-1] != "0" else "1")
    for header in ("", "Bearer nonsense", f"Bearer plm_{'0' * 12}_{'0' * 64}", wrong_secret, "Basic abc"):
        answer = client.get("/v1/models", headers={"Authorization": header})
        assert answer.status_code == 401, header
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.json()["code"] == "unauthenticated"


def test_an_expired_and_a_revoked_key_are_401_at_once(client: TestClient) -> None:
    with session_scope(tenant="acme") as session:
        _, expired = create_key(
            session,
            tenant="acme",
            scopes=["read"],
            name="old",
            expires_at=datetime.now(UTC) - timedelta(seconds=1),
        )
        key, revoked = create_key(session, tenant="acme", scopes=["read"], name="gone")
    header = {"Authorization": f"Bearer {revoked}"}
    assert client.get("/v1/models", headers=header).status_code == 200
    with session_scope(tenant="acme") as session:
        revoke_key(session, key_id=key.id)
    assert "revoked" in client.get("/v1/models", headers=header).json()["detail"]
    answer = client.get("/v1/models", headers={"Authorization": f"Bearer {expired}"})
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("scope", "method", "path", "body"),
    [
        ("read", "GET", "/v1/models", None),
        ("ingest", "POST", "/v1/models", {}),
        ("ingest", "PUT", "/v1/models/m/tasks/t", None),
        ("train", "POST", "/v1/models/m/updates", {"tasks": ["t"]}),
        ("train", "POST", "/v1/updates/upd_1/cancel", None),
        ("deploy", "POST", "/v1/updates/upd_1/approve", None),
        ("deploy", "POST", "/v1/models/m/rollback", {"reason": "x"}),
        ("deploy", "PUT", "/v1/models/m/aliases/champion", {"version": 0}),
        ("admin", "DELETE", "/v1/models/m", None),
    ],
)
def test_each_call_needs_its_scope(
    database: str, redis_url: str, scope: str, method: str, path: str, body: object
) -> None:
    others = {"read", "ingest", "train", "deploy", "admin"} - {scope}
    refused = make_client("acme", *sorted(others)).request(method, path, json=body)
    assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
    assert f"'{scope}'" in refused.json()["detail"]
    assert make_client("acme", scope).request(method, path, json=body).status_code != 403


def test_promotion_always_needs_deploy_and_a_gate_change_needs_admin(world: World) -> None:
    world.model()
    trainer = make_client("acme", "train", "read", "ingest")
    answer = trainer.post("/v1/models/triage/updates", json={"tasks": ["t"], "promotion": "always"})
    assert world.problem(answer) == (403, "missing_scope")
    answer = trainer.patch("/v1/models/triage", json={"gate": {"max_regression": 1}})
    assert world.problem(answer) == (403, "missing_scope")
    assert trainer.patch("/v1/models/triage", json={"metadata": {"a": 1}}).status_code == 200


def test_another_tenant_finds_nothing_by_name_or_id(world: World, other_client: TestClient) -> None:
    model = world.model()
    world.task("one")
    update = world.request("one")
    for path in (
        f"/v1/models/{model['id']}", "/v1/models/triage/versions/0", "/v1/models/triage/tasks",
        f"/v1/updates/{update['id']}", f"/v1/updates/{update['id']}/events", "/v1/models/triage/reports/forgetting",
        "/v1/models/triage/history", "/v1/models/triage/aliases", "/v1/models/triage/tasks/one/examples",
    ):  # fmt: skip
        assert other_client.get(path).status_code == 404, path
    assert other_client.post(f"/v1/updates/{update['id']}/cancel").status_code == 404
    assert other_client.post("/v1/models/triage/rollback", json={"reason": "x"}).status_code == 404


def test_the_database_itself_shows_a_tenant_only_its_own_rows(world: World, other_client: TestClient) -> None:
    world.model()
    world.task("one")
    for role in ("app", "worker"):
        with session_scope(tenant="globex", role=role) as session:
            for table in ("models", "tasks", "examples", "versions", "aliases", "alias_moves"):
                assert session.execute(text(f"SELECT count(*) FROM {table}")).scalar() == 0, (role, table)
            updated = session.execute(text("UPDATE models SET metadata = '{}'"))
            assert updated.rowcount == 0
    with session_scope(tenant="") as session:
        assert session.execute(text("SELECT count(*) FROM models")).scalar() == 0
    with pytest.raises(Exception, match="row-level security"), session_scope(tenant="globex") as session:
        session.execute(text("INSERT INTO tenants (id) VALUES ('acme2')"))


def test_every_table_forces_row_level_security(database: str) -> None:
    with session_scope(tenant="acme") as session:
        open_tables = session.execute(
            text(
                "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'public'"
                " AND relkind = 'r' AND relname <> 'alembic_version' AND NOT (relrowsecurity AND relforcerowsecurity)"
            )
        ).all()
    assert open_tables == []


def test_a_worker_cannot_read_keys(database: str) -> None:
    with (
        pytest.raises(Exception, match="permission denied"),
        session_scope(tenant="acme", role="worker") as session,
    ):
        session.execute(text("SELECT * FROM api_keys"))
