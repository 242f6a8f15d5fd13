"""Requests for imports over HTTP: who may, what is refused before a worker is troubled, and what is stored."""

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.artifacts import get_store
from service.body_limit import BodyLimit
from service.config import get_settings
from service.db import session_scope
from service.errors import Conflict
from service.imports import commands
from service.imports.taints import require_untainted
from service.models import Erasure, Model, Update, Version
from tests.scenes import World, make_client
from tests.service.imports.uploads import TAR, entry, files, send, tar_of

WHERE = "/v1/models/triage/versions:import"


def refused(world: World, tar: bytes | None = None, **query: Any) -> tuple[int, str]:
    return world.problem(send(world, tar, **query))


def test_a_request_is_queued_as_an_update_that_says_all_about_the_upload(scene: World) -> None:
    answer = send(scene, metadata='{"ticket": 7}', promotion="manual")
    assert answer.status_code == 202
    update = scene.ok(answer)
    assert answer.headers["Location"] == f"/v1/updates/{update['id']}"
    assert scene.update(update["id"]) == update
    assert (update["status"], update["parent"], update["promotion"]) == ("queued", 0, "manual")
    assert (update["tasks"], update["metadata"]) == (["one"], {"ticket": 7})
    parameters = update["strategy"]["parameters"]
    assert (parameters["rows"], parameters["claimed_rows"]) == ("learnt", 4)
    assert get_store().holds(parameters["sha256"])
    entry = scene.get("/audit")["data"][0]
    assert (entry["action"], entry["target"]) == ("adapter.imported", update["id"])
    assert entry["data"]["sha256"] == parameters["sha256"]


def test_it_warns_of_labels_that_nothing_measures_and_of_those_it_lacks(scene: World) -> None:
    warnings = " ".join(scene.ok(send(scene, tar_of(files(labels=b'["math", "poems"]'))))["warnings"])
    assert "task 'one': the adapter has no label 'os'" in warnings
    assert "'poems'" in warnings


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ({"tasks": []}, (422, "validation_error")),
        ({"tasks": ["nosuch"]}, (404, "task_not_found")),
        ({"tasks": ["empty"]}, (422, "no_eval_data")),
        ({"parent": 7}, (422, "parent_not_found")),
        ({"parent": "elder"}, (422, "validation_error")),
        ({"rows": "some"}, (422, "validation_error")),
        ({"promotion": "never"}, (422, "validation_error")),
        ({"max_length": 1}, (422, "validation_error")),
        ({"metadata": "{"}, (422, "validation_error")),
        ({"metadata": "[]"}, (422, "validation_error")),
        ({"metadata": '{"a": "\\u0000"}'}, (422, "validation_error")),
    ],
)
def test_what_cannot_be_is_refused_before_the_tar_is_looked_at(
    scene: World, query: dict[str, Any], answer: tuple[int, str]
) -> None:
    scene.ok(scene.client.put("/v1/models/triage/tasks/empty"))
    assert refused(scene, b"no tar", **query) == answer


def test_a_tar_that_cannot_become_a_version_is_refused_and_leaves_nothing(scene: World) -> None:
    assert refused(scene, tar_of(files(), entry("evil.py"))) == (422, "unexpected_file")
    assert refused(scene, b"") == (422, "bad_archive")
    with session_scope(tenant="acme") as session:
        assert session.scalars(select(Update)).all() == []


def test_another_kind_of_body_is_415_and_a_compressed_one_too(scene: World) -> None:
    assert scene.problem(send(scene, headers={"Content-Type": "application/gzip"}))[0] == 415
    assert scene.problem(send(scene, headers={"Content-Encoding": "gzip"}))[0] == 415


def test_a_body_over_the_limit_is_413_and_one_over_that_of_json_is_not(
    scene: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tar_of(files())
    small = get_settings().model_copy(update={"max_body_bytes": len(tar) - 1})
    monkeypatch.setattr("service.imports.routes.get_settings", lambda: small)
    assert refused(scene) == (413, "body_too_large")
    monkeypatch.undo()
    tight = TestClient(BodyLimit(scene.client.app, max_bytes=100), headers=scene.client.headers)
    assert send(World(tight)).status_code == 202
    as_json = tight.post(
        WHERE, params={"tasks": ["one"]}, content=tar, headers={"Content-Type": "application/json"}
    )
    assert as_json.status_code == 415


def test_a_tenant_may_have_so_many_bytes_waiting(scene: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = tar_of(files())
    small = get_settings().model_copy(update={"max_waiting_import_bytes_per_tenant": 2 * len(tar)})
    monkeypatch.setattr(commands, "get_settings", lambda: small)
    first = scene.ok(send(scene))
    scene.ok(send(scene))
    assert refused(scene) == (413, "too_many_waiting_imports")
    scene.ok(scene.client.post(f"/v1/updates/{first['id']}/cancel"))
    assert send(scene).status_code == 202


def stored() -> set[str]:
    return {sha256 for sha256, _ in get_store().hashes()}


def test_what_is_over_the_quota_is_refused_before_it_is_taken_in_and_never_stored(
    scene: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar, before = tar_of(files(facts=b'{"seed": 99}')), stored()
    small = get_settings().model_copy(update={"max_waiting_import_bytes_per_tenant": len(tar) - 1})
    monkeypatch.setattr(commands, "get_settings", lambda: small)

    def unannounced() -> Iterator[bytes]:
        yield tar

    def never_read() -> Iterator[bytes]:
        pytest.fail("the body was taken in")
        yield b""

    ask = partial(scene.client.post, WHERE, params={"tasks": ["one"]})
    for body, length in ((unannounced(), {}), (never_read(), {"Content-Length": str(len(tar))})):
        answer = ask(content=body, headers={**TAR, **length})
        assert scene.problem(answer) == (413, "too_many_waiting_imports")
    assert stored() == before


def test_a_repeat_is_answered_as_the_first_whatever_has_changed_since_and_stores_nothing(
    scene: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"Idempotency-Key": "again"}
    first = send(scene, headers=key)
    full = get_settings().model_copy(update={"max_waiting_import_bytes_per_tenant": 1})
    monkeypatch.setattr(commands, "get_settings", lambda: full)
    scene.client.delete("/v1/models/triage")
    get_store().delete(first.json()["strategy"]["parameters"]["sha256"])
    before = stored()
    again = send(scene, headers=key)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true")
    assert again.json() == first.json()
    assert stored() == before
    assert scene.problem(send(scene, b"other", headers=key)) == (422, "idempotency_key_reused")


def test_the_same_key_and_tar_ask_for_one_import_only(scene: World) -> None:
    key = {"Idempotency-Key": "once"}
    first = send(scene, headers=key)
    again = send(scene, headers=key)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json() == first.json()
    other = send(scene, tar_of(files(), entry("README.md")), headers=key)
    assert scene.problem(other) == (422, "idempotency_key_reused")
    assert scene.problem(send(scene, headers=key, promotion="manual")) == (422, "idempotency_key_reused")
    assert len(scene.get("/models/triage/updates")["data"]) == 1


def test_it_needs_the_scope_train_and_to_promote_always_the_scope_deploy(scene: World) -> None:
    for scopes, query, status in (
        (("read", "ingest"), {}, 403),
        (("read", "train"), {"promotion": "always"}, 403),
        (("read", "train"), {}, 202),
    ):
        assert send(World(make_client("acme", *scopes)), **query).status_code == status


def test_an_archived_model_takes_no_import(scene: World) -> None:
    scene.client.delete("/v1/models/triage")
    assert refused(scene) == (409, "model_archived")


def test_a_child_of_a_version_keeps_its_labels_in_their_order(scene: World) -> None:
    with session_scope(tenant="acme") as session:
        base = session.scalars(select(Version)).one()
        made = {
            name: getattr(base, name) for name in ("tenant_id", "model_id", "cut", "parameters", "training")
        }
        session.add(
            Version(**made, number=1, parent=0, lineage=[0, 1], labels=["os", "math"], statistics={}, provenance={},
                    artifact_sha256="0" * 64, artifact_bytes=1)
        )  # fmt: skip
    with session_scope(tenant="acme") as session:
        session.scalars(select(Model)).one().last_version = 1
    odd, before = tar_of(files(facts=b'{"seed": 98}')), stored()
    assert refused(scene, odd, parent=1) == (422, "labels_differ")
    assert stored() == before
    fitting = tar_of(files(labels=b'["os", "math"]'))
    assert scene.ok(send(scene, fitting, parent=1))["parent"] == 1
    assert send(scene, parent=0).status_code == 202


@pytest.mark.parametrize("known_by", ["bytes", "bytes as they came", "update"])
@pytest.mark.parametrize("inherited", [False, True])
def test_an_adapter_that_is_known_to_carry_erased_rows_is_refused(
    scene: World, known_by: str, inherited: bool
) -> None:
    tar = tar_of(files(facts=b'{"lineage": {"update": "upd_1"}}'))
    sha256 = hashlib.sha256(tar).hexdigest()
    with session_scope(tenant="acme") as session:
        base = session.scalars(select(Version)).one()
        made = {name: getattr(base, name) for name in ("tenant_id", "model_id", "cut", "training")}
        made |= {"statistics": {}, "provenance": {}, "artifact_bytes": 1, "labels": []}
        session.add(
            Version(
                **made,
                number=1,
                parent=0,
                lineage=[0, 1],
                artifact_sha256="1" * 64,
                strategy="replay",
                parameters={},
            )
        )
        came = known_by == "bytes as they came"
        session.add(
            Version(
                **made, number=2, parent=1, lineage=[0, 1, 2], strategy="import" if came else "replay",
                artifact_sha256=sha256 if known_by == "bytes" else "2" * 64, parameters={"sha256": sha256} if came else {},
                update_id="upd_1" if known_by == "update" else None,
            )
        )  # fmt: skip
        model = session.scalars(select(Model)).one()
        model.last_version = 2
    assert send(scene, tar).status_code == 202
    with session_scope(tenant="acme") as session:
        session.add(
            Erasure(
                tenant_id="acme", id="era_1", model_id=made["model_id"], subject_digest="d", deleted=1, requested_by="x",
                versions=[1 if inherited else 2],
            )
        )  # fmt: skip
    assert refused(scene, tar) == (409, "tainted_adapter")
    assert send(scene).status_code == 202
    with session_scope(tenant="acme") as session:
        waiting = session.scalars(select(Update).order_by(Update.seq).limit(1)).one()
        with pytest.raises(Conflict, match="erased"):
            require_untainted(
                session, model_id=waiting.model_id, sha256=waiting.parameters["sha256"],
                origin_update=waiting.parameters["origin_update"],
            )  # fmt: skip


def test_what_the_upload_weighs_on_disk_is_one_file_however_often_it_is_sent(scene: World) -> None:
    hashes = {scene.ok(send(scene))["strategy"]["parameters"]["sha256"] for _ in range(2)}
    assert len(hashes) == 1
    with get_store().open_verified(hashes.pop()) as stored:
        assert stored.read() == tar_of(files())


def test_another_tenant_does_not_find_the_model(scene: World, other_client: TestClient) -> None:
    stranger = World(other_client)
    assert stranger.problem(send(stranger)) == (404, "model_not_found")
