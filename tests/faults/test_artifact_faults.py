"""Faults of disks: full, forbidden or damaged, they cost attempts and updates, never a version that was."""

import hashlib
import json
import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.rig import QUICK, SHORT, Part, Rig, until
from tests.scenes import docstrings

pytestmark = pytest.mark.slow

ROOM_BYTES = 64 * 1024  # for rows and logs; a checkpoint or an adapter takes more
OLD_SECONDS = 2 * 3600


def limit_files(*processes: psutil.Process, to: int = resource.RLIM_INFINITY) -> None:
    """Lets processes write no file past a size: to them the disk is full, root or not."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (to, hard))


def whole(part: Part) -> list[psutil.Process]:
    """A process and everything below it."""
    return [psutil.Process(part.pid), *part.descendants()]


def request(rig: Rig, task: str, training: dict[str, object] = QUICK, **fields: object) -> str:
    """Posts an update and returns its id."""
    update: str = rig.world.request(task, training=training, **fields)["id"]
    return update


def ended(rig: Rig, update: str) -> dict[str, Any]:
    """Waits for an update's end."""
    return rig.ended(update)


def failed_attempts(rig: Rig, update: str) -> list[str]:
    """The codes of an update's failed attempts, in order."""
    return [event["data"]["code"] for event in rig.events(update) if "code" in (event["data"] or {})]


def stored(rig: Rig, pattern: str = "*.tar") -> list[Path]:
    """Files of the artifact store."""
    return sorted(rig.artifacts.glob(f"??/{pattern}"))


def artifact(rig: Rig, version: int) -> Path:
    """The file of a version's artifact."""
    sha256 = rig.sql("SELECT artifact_sha256 FROM versions WHERE number = :number", number=version)[0][0]
    return rig.artifacts / sha256[:2] / f"{sha256}.tar"


def download(rig: Rig, version: int) -> Any:
    """GETs a version's adapter."""
    return rig.world.client.get(f"/v1/models/triage/versions/{version}/adapter")


@pytest.mark.timeout(600)  # seven attempts in all
def test_no_work_folder_and_no_room_in_it_fail_updates_after_every_attempt_and_the_next_is_learnt(
    rig: Rig,
) -> None:
    rig.work.touch()  # a file where the folder should be keeps root out too
    worker = rig.start_worker()
    limit_files(psutil.Process(worker.pid), to=ROOM_BYTES)  # inherited by the training child
    rig.learnable("one")
    for reason in ("Not a directory", "File too large"):
        end = ended(rig, request(rig, "one", SHORT))
        assert (end["status"], end["attempt"], end["version"]) == ("failed", 3, None)
        assert failed_attempts(rig, end["id"]) == ["work_folder_unwritable"] * 3
        assert reason in end["error"]["message"]
        assert "PALIMPSEST_WORK_DIR" in end["error"]["message"]
        if rig.work.is_file():
            rig.work.unlink()
    until(lambda: not (rig.work / end["id"]).exists(), what="the failed update to give its room back")

    limit_files(*whole(worker))
    assert ended(rig, request(rig, "one"))["status"] == "promoted"
    rig.check_ledger()


def test_a_store_without_room_costs_attempts_and_leaves_nothing_half_written(rig: Rig) -> None:
    worker = rig.start_worker()
    rig.learnable("one")
    update = request(rig, "one", SHORT)
    rig.at(update)
    limit_files(psutil.Process(worker.pid), to=ROOM_BYTES)  # the worker stores, its child does not
    until(lambda: failed_attempts(rig, update), what="an attempt to fail")
    assert stored(rig, "*.partial") == []
    limit_files(psutil.Process(worker.pid))
    end = ended(rig, update)
    assert (end["status"], end["version"]) == ("promoted", 1)
    assert end["attempt"] > 1
    assert set(failed_attempts(rig, update)) == {"artifact_store_unavailable"}
    assert stored(rig) == [artifact(rig, 1)]
    rig.check_ledger()


def test_an_unwritable_store_fails_updates_with_the_reason_until_it_is_mended(rig: Rig) -> None:
    rig.start_worker()
    rig.artifacts.touch()  # a file where the folder should be keeps root out too
    rig.learnable("one")
    ready = rig.world.client.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["artifacts"]) == (503, "FileExistsError")
    end = ended(rig, request(rig, "one"))
    assert (end["status"], end["attempt"], end["version"]) == ("failed", 3, None)
    assert failed_attempts(rig, end["id"]) == ["artifact_store_unavailable"] * 3
    assert "ARTIFACT_URL" in end["error"]["message"]

    rig.artifacts.unlink()
    assert rig.world.client.get("/readyz").status_code == 200
    assert ended(rig, request(rig, "one"))["version"] == 1
    rig.check_ledger()


def test_a_damaged_parent_fails_the_update_and_the_champion_stands(rig: Rig) -> None:
    rig.start_worker()
    rig.learnable("one", "two", "three")
    updates = [request(rig, "one"), request(rig, "two")]
    assert [ended(rig, update)["version"] for update in updates] == [1, 2]
    good = artifact(rig, 2).read_bytes()
    altered = bytearray(good)
    altered[len(good) // 2] ^= 1
    artifact(rig, 2).write_bytes(altered)

    _refused(rig, request(rig, "three"), version=2)
    assert rig.world.get("/models/triage")["champion"] == 2
    assert rig.world.problem(download(rig, 2)) == (500, "artifact_damaged")
    assert hashlib.sha256(download(rig, 1).content).hexdigest() == artifact(rig, 1).stem

    artifact(rig, 1).unlink()
    _refused(rig, request(rig, "three", parent=1), version=1)
    assert rig.world.problem(download(rig, 1)) == (500, "artifact_damaged")

    artifact(rig, 2).write_bytes(good)  # restored from the backup
    assert download(rig, 2).content == good
    assert ended(rig, request(rig, "three"))["version"] == 3
    rig.check_ledger()


def _refused(rig: Rig, update: str, *, version: int) -> None:
    """An update that fails at once, naming the damaged artifact and what to do."""
    end = ended(rig, update)
    assert (end["status"], end["attempt"], end["error"]["code"]) == ("failed", 1, "artifact_damaged")
    assert artifact(rig, version).stem in end["error"]["message"]
    assert "backup" in end["error"]["message"]


@pytest.mark.timeout(600)  # three workers, one after the other
def test_a_worker_killed_on_either_side_of_the_rename_leaves_one_version_and_no_litter(rig: Rig) -> None:
    armed = rig.armed("artifact_partial=kill, artifact_stored=kill")
    doomed = [rig.start_worker(**armed), rig.start_worker(**armed)]
    rig.learnable("one")
    update = request(rig, "one")
    for worker in doomed:
        worker.gone(seconds=300)
    assert len(stored(rig, "*.partial")) == 1
    assert len(stored(rig)) == 1  # renamed, and no version refers to it

    _sweep(rig, stored(rig, "*.*"))
    rig.start_worker()
    end = ended(rig, update)
    assert (end["status"], end["attempt"], end["version"]) == ("promoted", 3, 1)
    assert failed_attempts(rig, update) == ["lease_expired"] * 2

    orphan = rig.artifacts / "00" / f"{'0' * 64}.tar"
    orphan.parent.mkdir(exist_ok=True)
    orphan.touch()
    _age(artifact(rig, 1))
    _sweep(rig, [orphan])
    assert stored(rig, "*.*") == [artifact(rig, 1)], "a version's artifact was swept"
    rig.check_ledger()


def _sweep(rig: Rig, litter: list[Path]) -> None:
    """Makes litter look old and has a sweeper of its own remove it."""
    _age(*litter)
    sweeper = rig.start_sweeper(anew=True)  # as operators start it
    until(lambda: not any(file.exists() for file in litter), seconds=180, what="the litter to be swept")
    sweeper.end()


def _age(*files: Path) -> None:
    """Makes files look as old as what no writer is busy with any more."""
    then = time.time() - OLD_SECONDS
    for file in files:
        os.utime(file, (then, then))


def test_a_full_spool_refuses_the_body_stores_nothing_and_the_api_lives(rig: Rig) -> None:
    spool = rig.folder / "spool"
    spool.mkdir()
    rig.start_api(PALIMPSEST_SPOOL_DIR=str(spool))
    rig.world.model()
    rig.world.ok(rig.world.client.put("/v1/models/triage/tasks/one"))
    texts = docstrings("math") * 200
    rows = [{"text": f"{number}: {text}", "label": "math"} for number, text in enumerate(texts)]
    large = "\n".join(json.dumps(row) for row in rows)
    assert len(large) > 4 * ROOM_BYTES
    api = psutil.Process(rig.api.pid)

    limit_files(api, to=ROOM_BYTES)
    assert rig.world.problem(_ingest(rig, large)) == (503, "spool_unavailable")
    assert rig.world.client.get("/livez").status_code == 200
    assert rig.world.get("/models/triage/tasks/one/examples")["data"] == []
    assert rig.world.ok(_ingest(rig, json.dumps(rows[0])))["accepted"] == 1

    limit_files(api)
    spool.rmdir()
    assert rig.world.problem(_ingest(rig, large)) == (503, "spool_unavailable")
    spool.mkdir()
    assert rig.world.ok(_ingest(rig, large))["accepted"] == len(rows) - 1


def _ingest(rig: Rig, body: str) -> Any:
    return rig.world.client.post(
        "/v1/models/triage/tasks/one/examples",
        content=body,
        headers={"Content-Type": "application/x-ndjson"},
    )
