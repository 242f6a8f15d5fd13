"""Keys over HTTP: made, listed, rotated, revoked, and never shown twice."""

import logging
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import session_scope
from service.security import authenticate
from tests.scenes import World, make_client


def made(client: TestClient, *scopes: str, **fields: object) -> dict[str, str]:
    """Makes a key through the API."""
    body = {"name": "nightly", "scopes": scopes or ["read"], **fields}
    return World.ok(client.post("/v1/keys", json=body))


def status(client: TestClient, api_key: str) -> int:
    """What a request with the key is answered."""
    return client.get("/v1/models", headers={"Authorization": f"Bearer {api_key}"}).status_code


def rotated(client: TestClient, key: dict[str, str], **body: object) -> str:
    """Rotates the key and returns the new one."""
    answer: str = World.ok(client.post(f"/v1/keys/{key['id']}/rotate", json=body))["api_key"]
    return answer


def test_a_key_is_made_used_listed_and_revoked_over_http(client: TestClient) -> None:
    key = made(client, "read", "train")
    assert key["api_key"].startswith(f"plm_{key['prefix']}_")
    assert key["scopes"] == ["read", "train"]
    assert status(client, key["api_key"]) == 200
    listed = World.ok(client.get("/v1/keys"))["data"]
    assert [row["name"] for row in listed] == ["nightly", "acme-test"]
    assert World.ok(client.get(f"/v1/keys/{key['id']}"))["last_used_at"] is not None
    assert client.delete(f"/v1/keys/{key['prefix']}").status_code == 204
    assert status(client, key["api_key"]) == 401
    assert client.delete(f"/v1/keys/{key['id']}").status_code == 204


def test_a_secret_holds_256_bits_and_only_its_keyed_hash_is_stored(client: TestClient) -> None:
    key = made(client)
    secret = key["api_key"].rsplit("_", 1)[1]
    assert len(bytes.fromhex(secret)) == 32
    with session_scope(tenant="acme") as session:
        stored = session.execute(text("SELECT * FROM api_keys WHERE id = :id"), {"id": key["id"]}).one()
    assert len(stored.secret_hash) == 32
    assert secret not in str(stored)
    assert bytes.fromhex(secret) != stored.secret_hash


def test_a_rotated_key_has_a_new_secret_and_the_old_one_ends_at_once(client: TestClient) -> None:
    key = made(client)
    new = rotated(client, key)
    assert (status(client, key["api_key"]), status(client, new)) == (401, 200)
    assert new.split("_")[1] == key["prefix"]


def test_the_old_secret_lasts_as_long_as_the_overlap(client: TestClient) -> None:
    key = made(client)
    new = rotated(client, key, overlap_seconds=60)
    assert (status(client, key["api_key"]), status(client, new)) == (200, 200)
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE api_keys SET previous_expires_at = now() - interval '1 second'"))
    assert (status(client, key["api_key"]), status(client, new)) == (401, 200)
    assert "rotated" in client.get(
        "/v1/models", headers={"Authorization": f"Bearer {key['api_key']}"}
    ).json()["detail"]  # fmt: skip


def test_a_second_rotation_ends_the_first_secret_whatever_its_overlap(client: TestClient) -> None:
    key = made(client)
    second = rotated(client, key, overlap_seconds=3600)
    third = rotated(client, key, overlap_seconds=3600)
    assert [status(client, one) for one in (key["api_key"], second, third)] == [401, 200, 200]


def test_revoking_ends_both_secrets_of_an_overlap_and_bars_rotation(world: World) -> None:
    key = made(world.client)
    new = rotated(world.client, key, overlap_seconds=3600)
    world.client.delete(f"/v1/keys/{key['id']}")
    assert (status(world.client, key["api_key"]), status(world.client, new)) == (401, 401)
    answer = world.client.post(f"/v1/keys/{key['id']}/rotate")
    assert world.problem(answer) == (409, "key_not_valid")


def test_a_key_hands_out_only_scopes_it_has_by_making_or_by_rotating(world: World) -> None:
    admin = make_client("acme", "admin")
    answer = admin.post("/v1/keys", json={"name": "more", "scopes": ["deploy"]})
    assert world.problem(answer) == (403, "scope_not_held")
    mighty = made(world.client, "deploy")
    answer = admin.post(f"/v1/keys/{mighty['id']}/rotate")
    assert world.problem(answer) == (403, "scope_not_held")
    assert status(world.client, mighty["api_key"]) == 403, "the secret did not change"
    assert admin.delete(f"/v1/keys/{mighty['id']}").status_code == 204, "taking away needs no scope but admin"


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": []},
        {"scopes": ["everything"]},
        {"name": ""},
        {"name": "\0"},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "2099-01-01T00:00:00"},
        {"tenant": "globex"},
    ],
)
def test_a_key_that_cannot_be_is_refused(world: World, wrong: dict[str, object]) -> None:
    answer = world.client.post("/v1/keys", json={"name": "n", "scopes": ["read"], **wrong})
    assert world.problem(answer) == (422, "validation_error")


def test_a_key_made_with_an_expiry_ends_then(client: TestClient) -> None:
    key = made(client, expires_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert status(client, key["api_key"]) == 200
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE api_keys SET expires_at = now() WHERE id = :id"), {"id": key["id"]})
    assert status(client, key["api_key"]) == 401


@pytest.mark.parametrize("path", ["/v1/keys", "/v1/keys/{id}/rotate"])
def test_a_repeated_request_makes_no_second_secret_and_does_not_show_the_first(
    client: TestClient, path: str
) -> None:
    path = path.format(id=made(client)["id"])
    body = {"name": "n", "scopes": ["read"]} if path == "/v1/keys" else {}
    answers = [client.post(path, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    first, second = (World.ok(answer) for answer in answers)
    assert status(client, first["api_key"]) == 200
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert second == {**first, "api_key": None}


def test_secrets_stand_in_no_log_no_error_and_no_table(
    client: TestClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    key = made(client)
    new = rotated(client, key)
    told = [
        client.get("/v1/keys").text,
        client.get(f"/v1/keys/{key['id']}").text,
        client.get("/v1/audit").text,
    ]
    for api_key in (key["api_key"], new, new[:-1] + "x"):
        header = {"Authorization": f"Bearer {api_key}"}
        told += [client.get("/v1/models", headers=header).text]
        told += [client.post("/v1/keys", json={"name": 3, "scopes": [api_key]}).text]
    secrets = [api_key.rsplit("_", 1)[1] for api_key in (key["api_key"], new)]
    with session_scope(tenant="acme") as session:
        for table in ("api_keys", "audit_entries", "idempotency_keys"):
            told += [str(row) for row in session.execute(text(f"SELECT t::text FROM {table} AS t"))]
    everything = "\n".join([*told, caplog.text, *capfd.readouterr()])
    assert not [secret for secret in secrets if secret in everything]


def test_the_use_of_a_key_is_written_at_most_once_a_minute(client: TestClient) -> None:
    api_key = made(client)["api_key"]

    def last_used() -> tuple[object, object]:
        with session_scope(tenant="acme") as session:
            query = "SELECT last_used_at, xmin FROM api_keys WHERE name = 'nightly'"
            return tuple(session.execute(text(query)).one())

    authenticate(api_key)
    first = last_used()
    authenticate(api_key)
    assert last_used() == first
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE api_keys SET last_used_at = now() - interval '61 seconds'"))
    authenticate(api_key)
    assert last_used()[0] >= first[0]
