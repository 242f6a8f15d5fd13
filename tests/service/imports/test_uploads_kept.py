"""How long the tar of an import is kept: as long as something needs it, whoever deletes the same bytes meanwhile."""

import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service import db
from service.artifacts import ArtifactStore, get_store
from service.backup import WAITING_UPLOADS, take_backup
from service.config import get_settings
from service.db import engine_for, session_scope
from service.imports import commands
from service.registry.disposal import discard_artifacts, hold_artifacts, remove_unused
from service.updates import leases
from service.updates.leases import Claim
from service.updates.states import UpdateState, change_state
from tests.scenes import World, make_client
from tests.service.imports.uploads import files, send, tar_of
from workers.housekeeping import ORPHAN_AGE_SECONDS, sweep_store, sweep_updates

OTHER = tar_of(files(facts=b'{"seed": 97}'))


def asked_for(world: World, tar: bytes | None = None, **query: Any) -> tuple[str, str]:
    """Asks for an import; returns the update's id and the upload's hash."""
    update = world.ok(send(world, tar, **query))
    return update["id"], update["strategy"]["parameters"]["sha256"]


def cancel(world: World, update: str) -> None:
    world.ok(world.client.post(f"/v1/updates/{update}/cancel"))


def twin_of(world: World, tar: bytes) -> None:
    """Makes the archived model `twin`, of which an import of the same bytes waits."""
    world.model("twin")
    world.task("one", model="twin", train=2, held=2)
    world.ok(send(world, tar, model="twin"))
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE models SET archived_at = now() WHERE name = 'twin'"))


def test_a_cancelled_imports_upload_goes_at_once(scene: World) -> None:
    update, sha256 = asked_for(scene)
    cancel(scene, update)
    assert not get_store().holds(sha256)


def test_an_upload_that_another_import_waits_for_stays_until_that_one_ends_too(scene: World) -> None:
    first, sha256 = asked_for(scene)
    second, same = asked_for(scene)
    assert same == sha256
    cancel(scene, first)
    assert get_store().holds(sha256)
    cancel(scene, second)
    assert not get_store().holds(sha256)


def test_an_upload_that_is_also_a_versions_artifact_outlives_its_import(scene: World) -> None:
    update, sha256 = asked_for(scene)
    make_client("globex").post(
        "/v1/models", json={"name": "theirs", "base_model": "minilm-l6", "task_type": "text-classification"}
    )
    with session_scope(tenant="globex", role="worker") as session:
        session.execute(text("UPDATE versions SET artifact_sha256 = :sha256"), {"sha256": sha256})
    cancel(scene, update)
    assert get_store().holds(sha256)


def fails(claim: Claim) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        leases.fail_attempt(session, claim=claim, code="bad_numbers", message="no number", final=True)


def is_cancelled_at_work(claim: Claim) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        leases.cancel_claimed(session, claim=claim)


def is_held(claim: Claim) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        change_state(session, update_id=claim.update_id, to=UpdateState.EVALUATING)
        change_state(session, update_id=claim.update_id, to=UpdateState.AWAITING_APPROVAL, version=1)


@pytest.mark.parametrize("end", [fails, is_cancelled_at_work, is_held])
def test_an_upload_goes_when_its_import_fails_or_has_its_version(
    scene: World, end: Callable[[Claim], None]
) -> None:
    _, sha256 = asked_for(scene)
    end(scene.claim())
    assert not get_store().holds(sha256)


def test_an_upload_stays_while_another_attempt_may_need_it(scene: World) -> None:
    _, sha256 = asked_for(scene)
    with session_scope(tenant="acme", role="worker") as session:
        leases.fail_attempt(session, claim=scene.claim(), code="out_of_memory", message="no room")
    assert get_store().holds(sha256)


def test_a_sweep_of_expired_leases_waits_for_no_store(scene: World, monkeypatch: pytest.MonkeyPatch) -> None:
    update, sha256 = asked_for(scene)
    scene.claim()
    with session_scope(tenant="acme", role="worker") as session:
        session.execute(
            text("UPDATE updates SET cancel_requested_at = now(), lease_expires_at = now() - interval '1 h'")
        )
    monkeypatch.setattr(ArtifactStore, "delete", lambda *_: pytest.fail("the store was waited for"))
    sweep_updates()
    assert scene.update(update)["status"] == "cancelled"
    assert get_store().holds(sha256)


def test_where_the_store_is_away_one_deletion_is_tried_and_the_rest_is_left_to_the_sweep(
    scene: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = {get_store().put_tar(io.BytesIO(bytes([number]))) for number in range(4)}
    tried: list[str] = []

    def away(_store: ArtifactStore, sha256: str) -> None:
        tried.append(sha256)
        raise ConnectionError

    monkeypatch.setattr(ArtifactStore, "delete", away)
    with session_scope(tenant="acme") as session:
        discard_artifacts(session, hashes)
    assert len(tried) == 1


def test_an_import_that_is_scored_again_needs_its_upload_no_more(scene: World, database: str) -> None:
    update, sha256 = asked_for(scene)
    is_held(scene.claim())
    with session_scope(tenant="acme", role="worker") as session:
        change_state(session, update_id=update, to=UpdateState.EVALUATING)
    assert scene.get("/storage")["total"]["artifacts"] == 0
    with engine_for(database).begin() as connection:
        connection.exec_driver_sql("SET LOCAL ROLE palimpsest_owner")
        assert connection.exec_driver_sql(WAITING_UPLOADS).all() == []
    sent_again = asked_for(scene)
    cancel(scene, sent_again[0])
    assert not get_store().holds(sha256)


def test_the_sweep_of_orphans_leaves_what_waits_and_takes_what_nobody_came_to_need(scene: World) -> None:
    _, waiting = asked_for(scene)
    orphan = get_store().put_tar(io.BytesIO(OTHER))
    for sha256 in (waiting, orphan):
        path = Path(get_store()._path(sha256))
        os.utime(path, (0, path.stat().st_mtime - ORPHAN_AGE_SECONDS - 60))
    sweep_store()
    assert (get_store().holds(waiting), get_store().holds(orphan)) == (True, False)


def test_a_backup_holds_what_waits_and_does_without_what_has_ended_meanwhile(
    scene: World, tmp_path: Path
) -> None:
    _, waiting = asked_for(scene)
    _, ended = asked_for(scene, OTHER)
    get_store().delete(ended)  # as if its import had ended since the dump
    said: list[str] = []
    settings = get_settings()
    manifest = take_backup(
        tmp_path / "backup", database_url=settings.database_url, artifact_url=settings.artifact_url, say=said.append
    )  # fmt: skip
    assert manifest.artifacts == [waiting]
    assert [line for line in said if ended in line]


def test_a_purge_takes_the_uploads_of_waiting_imports_along(scene: World) -> None:
    twin_of(scene, OTHER)
    sha256 = hashlib.sha256(OTHER).hexdigest()
    assert get_store().holds(sha256)
    scene.ok(scene.client.post("/v1/models/twin/purge"))
    assert not get_store().holds(sha256)


def test_what_waits_to_be_imported_is_counted_as_stored_until_it_ends(scene: World) -> None:
    first, _ = asked_for(scene)
    second, _ = asked_for(scene)  # the same content counts once
    third, _ = asked_for(scene, OTHER)
    total = scene.get("/storage")["total"]
    assert (total["artifacts"], total["artifact_bytes"]) == (2, len(tar_of(files())) + len(OTHER))
    assert scene.get("/storage")["models"][0]["artifact_bytes"] == total["artifact_bytes"]
    for update in (first, second, third):
        cancel(scene, update)
    total = scene.get("/storage")["total"]
    assert (total["artifacts"], total["artifact_bytes"]) == (0, 0)


def test_an_upload_that_is_acknowledged_while_a_purge_deletes_the_same_bytes_is_kept(
    scene: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The purge has committed and deletes what it left; in that moment the same bytes are sent and answered with 202."""
    twin_of(scene, OTHER)
    sent: list[tuple[str, str]] = []

    def send_meanwhile(point: str) -> None:
        if point == "after_request_commit" and not sent:
            sent.append(("", ""))  # the import's own commit comes here too
            beside = threading.Thread(target=lambda: sent.append(asked_for(scene, OTHER)))
            beside.start()
            beside.join()

    monkeypatch.setattr(db, "reach", send_meanwhile)
    scene.ok(scene.client.post("/v1/models/twin/purge"))
    update, sha256 = sent[-1]
    assert scene.update(update)["status"] == "queued"
    assert get_store().holds(sha256)


def test_an_upload_that_was_deleted_before_it_is_acknowledged_is_refused_and_can_be_sent_again(
    scene: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes were there already, as those of another, and went with it after they were looked at."""
    original = commands.store_upload

    def stored_and_gone(*arguments: Any, **named: Any) -> commands.Upload:
        upload = original(*arguments, **named)
        assert remove_unused(upload.sha256, role="app")
        return upload

    monkeypatch.setattr(commands, "store_upload", stored_and_gone)
    answer = send(scene)
    assert scene.problem(answer) == (503, "upload_lost")
    assert answer.headers["Retry-After"] == "1"
    assert scene.get("/models/triage/updates")["data"] == []
    monkeypatch.undo()
    _, sha256 = asked_for(scene)
    assert get_store().holds(sha256)


def test_what_somebody_is_about_to_refer_to_is_not_deleted_and_nobody_waits(scene: World) -> None:
    update, sha256 = asked_for(scene)
    with session_scope(tenant="globex", role="worker") as session:
        assert hold_artifacts(session, [sha256])
        cancel(scene, update)
        assert not remove_unused(sha256, role="app")
        assert get_store().holds(sha256)
    assert remove_unused(sha256, role="app")  # nobody came to refer to it
    with session_scope(tenant="globex", role="worker") as session:
        assert not hold_artifacts(session, [sha256])
