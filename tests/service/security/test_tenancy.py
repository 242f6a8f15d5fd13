"""No key reaches what is not its own: every call of the OpenAPI document, and every table of the database.

The calls are read from the document, so that a new one joins by itself or, where this file knows too little of it,
fails until it is told.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, text

from service.db import engine_for
from tests.scenes import World

DOCUMENT = json.loads((Path(__file__).parents[3] / "docs" / "openapi.json").read_text())
PARAMETER = re.compile(r"\{(\w+)\}")
# What a call must carry to be read at all; calls with an optional body are sent without one.
BODIES: dict[str, object] = {
    "PATCH /v1/models/{model}": {"metadata": {"stolen": True}},
    "PUT /v1/models/{model}/aliases/{alias}": {"version": 0},
    "POST /v1/models/{model}/rollback": {"reason": "theft"},
    "POST /v1/models/{model}/gate:simulate": {},
    "POST /v1/models/{model}/erasures/{erasure}/rebuild": {},
    "POST /v1/models/{model}/updates": {"tasks": ["one"]},
    "POST /v1/models/{model}/updates:forecast": {"tasks": ["one"]},
    "PATCH /v1/webhooks/{webhook}": {"enabled": False},
    "POST /v1/models/{model}/versions/{version}/blend": {"beta": 0.5},
    "POST /v1/models/{model}/versions:import": {},  # which is no tar: whose model it is comes first
    "POST /v1/models/{model}/tasks/{task}/examples": {"examples": [{"text": "planted", "label": "math"}]},
}
QUERIES = {
    "DELETE /v1/models/{model}/examples": {"subject": "jane"},
    "POST /v1/models/{model}/versions:import": {"tasks": "one"},
}
# Calls that name nothing of a tenant, and what another tenant's key is answered; lists must be its own.
WITHOUT_IDS = {
    "GET /v1/models": 200,
    "POST /v1/models": 422,  # sent without a body; a name says nothing of other tenants' models, see below
    "GET /v1/keys": 200,
    "POST /v1/keys": 422,
    "GET /v1/webhooks": 200,
    "POST /v1/webhooks": 422,
    "GET /v1/audit": 200,
    "GET /v1/storage": 200,
    "GET /v1/signing-key": 200,  # the service's, the same for all
    "GET /v1/strategies": 200,
    "GET /v1/strategies/{strategy}": 200,
    "GET /livez": 200,
    "GET /readyz": 200,
    "GET /metrics": 200,  # totals over all tenants, without names
}
# What its owner is not shown either: the base has none.
EMPTY_FOR_THE_OWNER = {
    f"GET /v1/models/{{model}}/versions/{{version}}/{part}" for part in ("adapter", "report", "flips", "dial")
}


def calls() -> list[str]:
    """Every call of the document, such as `GET /v1/models`."""
    return [
        f"{method.upper()} {path}" for path, operations in DOCUMENT["paths"].items() for method in operations
    ]


CALLS_WITH_IDS = [call for call in calls() if call not in WITHOUT_IDS]


@pytest.fixture
def things(world: World) -> dict[str, list[str]]:
    """Something of the tenant `acme` for every path parameter, by each of its names."""
    model = world.model()
    world.task("one", train=2, held=2)
    world.examples("one", [{"id": "row", "text": "one of jane's", "label": "math", "subject": "jane"}])
    update = world.request("one")
    forecast = world.ok(world.client.post("/v1/models/triage/updates:forecast", json={"tasks": ["one"]}))
    key = world.get("/keys")["data"][0]
    erasure = world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "nobody"}))
    webhook = world.ok(world.client.post("/v1/webhooks", json={"url": "https://93.184.215.14/"}))
    delivery = world.ok(world.client.post(f"/v1/webhooks/{webhook['id']}/test"))
    return {
        "model": [model["name"], model["id"]],
        "task": ["one"],
        "example": ["row", world.get("/models/triage/tasks/one/examples")["data"][0]["id"]],
        "version": ["0"],
        "alias": ["champion"],
        "update": [update["id"]],
        "forecast": [forecast["id"]],
        "key_id": [key["id"], key["prefix"]],
        "erasure": [erasure["id"]],
        "webhook": [webhook["id"]],
        "delivery": [delivery["id"]],
    }


def addresses(call: str, things: dict[str, list[str]]) -> Iterator[str]:
    """The call's path with every name of every thing filled in."""
    path = call.split()[1]
    unknown = set(PARAMETER.findall(path)) - things.keys()
    assert not unknown, f"{call}: give `things` something of the tenant for {unknown}"
    for turn in (0, -1):  # by name, then by id
        yield path.format(**{parameter: names[turn] for parameter, names in things.items()})


def send(client: TestClient, call: str, address: str) -> Any:
    """Sends the call as well-formed as it must be for the answer to depend on who asks."""
    method = call.split()[0]
    operation = DOCUMENT["paths"][call.split()[1]][method.lower()]
    assert call in BODIES or not operation.get("requestBody", {}).get("required"), (
        f"{call}: give BODIES its body"
    )
    return client.request(method, address, json=BODIES.get(call), params=QUERIES.get(call))


def everything(database_url: str) -> dict[str, list[str]]:
    """Every row of the tenant `acme`, the moment a key was last used aside."""
    with engine_for(database_url).begin() as connection:
        connection.execute(text("SET LOCAL ROLE palimpsest_owner"))
        return {
            table: sorted(
                connection.execute(
                    text(
                        f"SELECT (to_jsonb(t) - 'last_used_at')::text FROM {table} t WHERE tenant_id = 'acme'"
                    )
                ).scalars()
            )
            for table in tables_of_tenants(connection)
        }


def tables_of_tenants(connection: Connection) -> list[str]:
    """The tables whose rows belong to a tenant."""
    found = connection.execute(
        text("SELECT table_name FROM information_schema.columns WHERE table_schema = 'public'"
             " AND column_name = 'tenant_id' ORDER BY 1")
    )  # fmt: skip
    return list(found.scalars())


def test_every_call_with_ids_is_404_to_another_tenant_and_changes_nothing(
    world: World, other_client: TestClient, things: dict[str, list[str]], database: str
) -> None:
    before = everything(database)
    wrong = []
    for call in CALLS_WITH_IDS:
        for address in addresses(call, things):
            answer = send(other_client, call, address)
            if answer.status_code not in (403, 404):
                wrong.append((call, address, answer.status_code, answer.text[:200]))
    assert not wrong
    assert everything(database) == before


def test_the_owner_finds_what_the_others_do_not(world: World, things: dict[str, list[str]]) -> None:
    for call in CALLS_WITH_IDS:
        if call.startswith("GET") and call not in EMPTY_FOR_THE_OWNER:
            for address in addresses(call, things):
                assert send(world.client, call, address).status_code == 200, address


@pytest.mark.parametrize("call", list(WITHOUT_IDS))
def test_calls_without_ids_show_another_tenant_only_its_own(
    world: World, other_client: TestClient, things: dict[str, list[str]], call: str
) -> None:
    assert call in calls(), "no longer in the document"
    answer = other_client.request(call.split()[0], call.split()[1].replace("{strategy}", "replay"))
    assert answer.status_code == WITHOUT_IDS[call]
    ids = [name for names in things.values() for name in names if "_" in name]
    assert not [name for name in ("acme", "triage", *ids) if name in answer.text]


def test_a_name_that_another_tenant_uses_is_free_and_says_nothing(
    world: World, other_client: TestClient
) -> None:
    mine, theirs = world.model(), World(other_client).model()
    assert mine["id"] != theirs["id"]
    assert mine["name"] == theirs["name"]


def test_the_same_idempotency_key_of_two_tenants_are_two_keys(world: World, other_client: TestClient) -> None:
    body = {"name": "m", "base_model": "minilm-l6", "task_type": "text-classification"}
    answers = [
        client.post("/v1/models", json=body, headers={"Idempotency-Key": "same"})
        for client in (world.client, other_client)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert "Idempotent-Replayed" not in answers[1].headers


def test_every_table_but_the_tenants_own_belongs_to_a_tenant_and_forces_its_wall(database: str) -> None:
    with engine_for(database).begin() as connection:
        owned = set(tables_of_tenants(connection))
        rows = connection.execute(
            text("SELECT relname, relrowsecurity AND relforcerowsecurity AS walled FROM pg_class"
                 " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')")
        )  # fmt: skip
        walls = {row.relname: row.walled for row in rows if row.relname != "alembic_version"}
    assert walls.keys() - owned == {"tenants"}
    assert all(walls.values()), walls


def test_every_wall_compares_the_rows_tenant_with_the_sessions(database: str) -> None:
    with engine_for(database).begin() as connection:
        policies = connection.execute(
            text("SELECT tablename, policyname, roles::text AS roles, qual, with_check FROM pg_policies")
        ).all()
        owned = tables_of_tenants(connection)
    shown = {"own_tenant": "(tenant_id = current_setting('palimpsest.tenant'::text, true))"}
    for table in owned:
        named = {row.policyname: row for row in policies if row.tablename == table}
        assert named["own_tenant"].qual == shown["own_tenant"], table
        assert named["own_tenant"].with_check is None, "rows written are compared with the same"
        assert named.keys() <= {"own_tenant", "owner_everything", "every_tenant"}, table
        assert "every_tenant" not in named or named["every_tenant"].roles == "{palimpsest_worker}"


def test_every_unique_key_and_reference_of_a_tenants_table_begins_with_the_tenant(database: str) -> None:
    with engine_for(database).begin() as connection:
        unique = connection.execute(
            text("SELECT i.indexrelid::regclass::text AS name, a.attname AS first FROM pg_index i"
                 " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
                 " WHERE i.indisunique AND i.indrelid::regclass::text = ANY(:tables)"),
            {"tables": tables_of_tenants(connection)},
        )  # fmt: skip
        loose = {row.name for row in unique if row.first != "tenant_id"}
        references = connection.execute(
            text("SELECT conname, a.attname AS first FROM pg_constraint"
                 " JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = conkey[1] WHERE contype = 'f'")
        )  # fmt: skip
        astray = {row.conname for row in references if row.first != "tenant_id"}
    assert loose == {"uq_api_keys_prefix", "uq_ended_sessions_nonce"}, (
        "both are looked up before the tenant is known"
    )
    assert astray == set()
