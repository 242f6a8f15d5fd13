"""A data subject is erased, the model learns anew without them, and a signed receipt says so."""

import base64
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.config import get_settings
from service.db import EVERY_TENANT, engine_for, session_scope
from service.forecasts.leases import FORECASTS
from tests.scenes import World

MODEL = "/v1/models/triage"
SECRET = "Zephyrine Quillfeather lives at 7 Larkspur Row"
ALWAYS = {"promotion": "always"}


def forget(world: World) -> dict[str, Any]:
    return world.ok(world.client.delete(f"{MODEL}/examples", params={"subject": "zephyrine"}))


def rebuild(world: World, erasure: dict[str, Any], **fields: object) -> dict[str, Any]:
    """Requests the rebuild, works it off, and returns how it ended."""
    body = {"training": World.TRAINING, **fields}
    update = world.ok(world.client.post(f"{MODEL}/erasures/{erasure['id']}/rebuild", json=body))
    world.work()
    return world.update(update["id"])


def receipt(world: World, erasure: dict[str, Any]) -> dict[str, Any]:
    return world.get(f"/models/triage/erasures/{erasure['id']}/receipt")


@pytest.fixture
def taught(world: World) -> World:
    """Version 1 knows nothing of the subject; 2 was trained on two rows of theirs, 3 on top of it."""
    world.model()
    for task, labels in (
        ("one", ("math", "os")),
        ("two", ("random", "socket")),
        ("three", ("json", "shutil")),
    ):
        world.task(task, labels, train=6, held=4)
    rows = [
        {"text": f"{SECRET}, {n}", "label": "random", "subject": "zephyrine", "split": "train"} for n in "ab"
    ]
    world.examples("two", rows)
    for task in ("one", "two", "three"):
        assert world.learn(task, **ALWAYS)["status"] == "promoted"
    return world


def holders_of(secret: str, database_url: str) -> list[str]:
    """Tables with a row, and artifacts with a byte, that hold the text."""
    holders = []
    with engine_for(database_url).begin() as connection:
        connection.execute(text("SET LOCAL ROLE palimpsest_owner"))
        tables = connection.execute(
            text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relname <> 'alembic_version'")
        ).scalars().all()  # fmt: skip
        for table in tables:
            found = connection.scalar(
                text(f"SELECT count(*) FROM {table} t WHERE to_jsonb(t)::text LIKE :secret"),
                {"secret": f"%{secret}%"},
            )
            holders += [table] if found else []
    for variable in ("ARTIFACT_URL", "PALIMPSEST_WORK_DIR"):
        folder = Path(os.environ[variable].removeprefix("file://"))
        holders += [
            str(file) for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()
        ]
    return holders


def verified(signed: dict[str, Any], key: dict[str, Any]) -> bool:
    """Whether the key made the signature, checked with nothing but what the documentation says."""
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    document = json.dumps(signed["receipt"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        public.verify(base64.urlsafe_b64decode(signed["signature"]["value"] + "=="), document.encode())
    except InvalidSignature:
        return False
    return True


@pytest.mark.slow  # four trainings
def test_after_erasure_rebuild_and_retirement_nothing_holds_the_subject_and_the_receipt_says_all(
    taught: World, database: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    assert holders_of(SECRET, database) == ["examples"]
    erasure = forget(taught)
    assert (erasure["deleted"], erasure["versions"], erasure["inherited_by"]) == (2, [2], [3])
    assert erasure["rebuild"] == {"parent": 1, "tasks": ["two", "three"]}
    before = receipt(taught, erasure)["receipt"]
    assert (before["champion_is_clean"], before["complete"], before["rebuild"]) == (False, False, None)

    update = rebuild(taught, erasure)
    assert (update["status"], update["parent_version"]) == ("awaiting_approval", 1)
    taught.ok(taught.client.post(f"/v1/updates/{update['id']}/approve", json={"reason": "erased"}))
    retired = taught.ok(taught.client.post(f"{MODEL}/erasures/{erasure['id']}/retire"))
    assert retired["retired_at"]

    signed = receipt(taught, erasure)
    after = signed["receipt"]
    assert [(v["version"], v["trained_on"], v["adapter_sha256"]) for v in after["tainted_versions"]] == [
        (2, True, None),
        (3, False, None),
    ]
    assert (after["champion"], after["champion_is_clean"], after["complete"]) == (4, True, True)
    assert after["rebuild"] == {"update": update["id"], "status": "promoted", "version": 4, "parent": 1}
    key = taught.get("/signing-key")
    assert verified(signed, key)
    signed["receipt"]["rows_deleted"] = 0
    assert not verified(signed, key)

    assert holders_of(SECRET, database) == []
    assert holders_of("zephyrine", database) == []
    written = caplog.text + "".join(capfd.readouterr())
    assert SECRET not in written
    assert taught.client.get(f"{MODEL}/versions/2/adapter").status_code == 410
    assert taught.get("/models/triage/versions/4")["tasks"] == ["three", "two"]


@pytest.mark.slow  # three trainings
def test_versions_are_not_retired_while_an_alias_leads_to_one(taught: World) -> None:
    erasure = forget(taught)
    retire = f"{MODEL}/erasures/{erasure['id']}/retire"
    assert taught.problem(taught.client.post(retire)) == (409, "version_in_use")
    taught.rollback(to=1)
    taught.ok(taught.client.put(f"{MODEL}/aliases/shadow", json={"version": 2}))
    answer = taught.client.post(retire)
    assert taught.problem(answer) == (409, "version_in_use")
    assert "'shadow'" in answer.json()["detail"]
    taught.ok(taught.client.put(f"{MODEL}/aliases/shadow", json={"version": 1}))
    taught.ok(taught.client.post(retire))
    # Nothing is left to rebuild: the champion is clean.
    assert taught.get(f"/models/triage/erasures/{erasure['id']}")["rebuild"] is None
    again = taught.client.post(f"{MODEL}/erasures/{erasure['id']}/rebuild", json={})
    assert taught.problem(again) == (409, "nothing_to_rebuild")


@pytest.fixture
def learnt(world: World) -> World:
    """Version 1 was trained on the subject's rows, among others."""
    world.model()
    world.task("one", train=6, held=4)
    row = {"text": SECRET, "label": "math", "subject": "zephyrine", "split": "train"}
    world.examples("one", [row])
    assert world.learn("one", **ALWAYS)["status"] == "promoted"
    return world


def test_a_repeated_erasure_tells_again_what_had_learnt_from_the_subject(learnt: World) -> None:
    first, second = forget(learnt), forget(learnt)
    assert (first["deleted"], second["deleted"]) == (1, 0)
    assert first["versions"] == second["versions"] == [1]
    assert [each["id"] for each in learnt.get("/models/triage/erasures")["data"]] == [
        second["id"],
        first["id"],
    ]
    assert (
        receipt(learnt, first)["receipt"]["subject_digest"]
        == receipt(learnt, second)["receipt"]["subject_digest"]
    )


def test_a_second_rebuild_is_refused_while_the_first_may_yet_succeed(learnt: World) -> None:
    erasure = forget(learnt)
    path = f"{MODEL}/erasures/{erasure['id']}/rebuild"
    first = learnt.ok(learnt.client.post(path, json={}, headers={"Idempotency-Key": "once"}))
    repeated = learnt.client.post(path, json={}, headers={"Idempotency-Key": "once"})
    assert repeated.json() == first
    assert learnt.problem(learnt.client.post(path, json={})) == (409, "rebuild_exists")
    learnt.ok(learnt.client.post(f"/v1/updates/{first['id']}/cancel"))
    second = learnt.ok(learnt.client.post(path, json={}))
    assert learnt.get(f"/models/triage/erasures/{erasure['id']}")["rebuild_update"] == second["id"]
    assert (second["parent"], second["tasks"], second["metadata"]) == (0, ["one"], {"erasure": erasure["id"]})


def test_a_candidate_that_is_being_compared_anew_is_not_retired(learnt: World) -> None:
    held = learnt.learn("one", relearn=True, promotion="manual")
    assert (held["status"], held["version"]) == ("awaiting_approval", 2)
    erasure = forget(learnt)
    learnt.rollback(to=0)  # the champion moved: the candidate is to be scored against the new one
    claim = learnt.claim()
    assert (claim.update_id, claim.rescore) == (held["id"], True)
    answer = learnt.client.post(f"{MODEL}/erasures/{erasure['id']}/retire")
    assert learnt.problem(answer) == (409, "version_in_use")
    assert held["id"] in answer.json()["detail"]


def test_a_version_that_a_forecast_is_made_from_is_not_retired(learnt: World) -> None:
    body = {"tasks": ["one"], "relearn": True, "parent": 1}
    asked = learnt.ok(learnt.client.post(f"{MODEL}/updates:forecast", json=body))
    erasure = forget(learnt)
    learnt.rollback(to=0)
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        FORECASTS.claim(session, worker="test", lease_seconds=30)
    answer = learnt.client.post(f"{MODEL}/erasures/{erasure['id']}/retire")
    assert learnt.problem(answer) == (409, "version_in_use")
    assert asked["id"] in answer.json()["detail"]


def test_metadata_that_leaves_no_room_for_the_erasure_is_refused(learnt: World) -> None:
    erasure = forget(learnt)
    path = f"{MODEL}/erasures/{erasure['id']}/rebuild"
    answer = learnt.client.post(path, json={"metadata": {"note": "x" * (16 * 1024 - 20)}})
    assert learnt.problem(answer) == (422, "rebuild_too_large")


def test_where_no_rows_are_left_there_is_nothing_to_rebuild(world: World) -> None:
    world.model()
    world.ok(world.client.put(f"{MODEL}/tasks/one"))
    rows = [
        {"text": f"{SECRET} {n}", "label": f"l{n % 2}", "subject": "zephyrine", "split": "train"}
        for n in range(6)
    ]
    world.examples("one", [*rows, {"text": "another's", "label": "l0", "split": "eval"}])
    assert world.learn("one", **ALWAYS)["status"] == "promoted"
    erasure = forget(world)
    assert (erasure["versions"], erasure["rebuild"]) == ([1], None)
    answer = world.client.post(f"{MODEL}/erasures/{erasure['id']}/rebuild", json={})
    assert world.problem(answer) == (409, "nothing_to_rebuild")
    assert "roll back" in answer.json()["detail"]


def test_an_unknown_erasure_is_a_404(world: World) -> None:
    world.model()
    for method, part in (("GET", ""), ("GET", "/receipt"), ("POST", "/rebuild"), ("POST", "/retire")):
        answer = world.client.request(
            method, f"{MODEL}/erasures/era_none{part}", json={} if method == "POST" else None
        )
        assert world.problem(answer) == (404, "erasure_not_found"), part


def test_the_signing_key_changes_with_the_pepper_and_with_nothing_else(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.erasures import signing

    mine = client.get("/v1/signing-key").json()
    assert client.get("/v1/signing-key").json() == mine
    other = get_settings().model_copy(update={"key_pepper": get_settings().key_pepper.__class__("another")})
    monkeypatch.setattr(signing, "get_settings", lambda: other)
    assert signing.signing_key().x != mine["x"]
