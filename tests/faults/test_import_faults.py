"""Faults in the middle of an import: its workers die one after the other, and it becomes one version all the same."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rig import Part, Rig, until
from tests.workers.imports.adapters import LABELS, packed, send, train_elsewhere
from workers.housekeeping import ORPHAN_AGE_SECONDS
from workers.training.contract import BaseFolder

pytestmark = pytest.mark.slow

# The upload lies unpacked in the work folder; the version's artifact is stored; the version is written, not committed.
DEATHS = ("prepared", "artifact_stored", "before_record")


def stored(rig: Rig) -> list[str]:
    """The names of the files in the artifact store, whole and partial."""
    return sorted(path.name for path in rig.artifacts.glob("??/*"))


def killed(worker: Part) -> None:
    assert worker.gone(seconds=240) == -signal.SIGKILL, worker.log


@pytest.fixture(scope="module")
def tar(minilm: BaseFolder, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An adapter that fits."""
    return packed(train_elsewhere(minilm, tmp_path_factory.mktemp("trained-elsewhere")))


def asked_for(rig: Rig, tar: bytes) -> dict[str, Any]:
    """Asks for an import, whose upload is then all that is stored."""
    rig.learnable("one")
    update = rig.world.ok(send(rig.world, tar, promotion="always"))
    assert stored(rig) == [f"{update['strategy']['parameters']['sha256']}.tar"]
    return update


def left_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("upd_*"))


@pytest.mark.timeout(1200)  # four workers, one after the other
def test_an_import_survives_the_death_of_its_worker_at_every_stage_and_leaves_one_version_and_no_litter(
    rig: Rig, tar: bytes
) -> None:
    rig.start_api(PALIMPSEST_MAX_ATTEMPTS=str(len(DEATHS) + 1))
    armed = rig.armed(",".join(f"{point}=kill" for point in DEATHS))
    update = asked_for(rig, tar)
    for _ in DEATHS:
        killed(rig.start_worker(**armed))
    rig.start_worker()
    ended = rig.ended(update["id"])
    assert sorted(path.name for path in (rig.folder / "failpoints").iterdir()) == sorted(DEATHS)
    assert (ended["status"], ended["version"], ended["attempt"]) == ("promoted", 1, len(DEATHS) + 1)
    version = rig.world.get("/models/triage/versions/1")
    assert (version["strategy"], version["labels"]) == ("import", LABELS)
    until(
        lambda: stored(rig) == [f"{version['artifact']['sha256']}.tar"], what="the version's artifact alone"
    )
    until(lambda: not left_in(rig.work), what="the work folders to go")
    rig.check_ledger()


@pytest.mark.timeout(600)
def test_an_import_that_is_cancelled_after_its_worker_died_leaves_its_upload_to_the_sweep_of_orphans(
    rig: Rig, tar: bytes
) -> None:
    update = asked_for(rig, tar)
    killed(rig.start_worker(**rig.armed("prepared=kill")))
    rig.world.ok(rig.world.client.post(f"/v1/updates/{update['id']}/cancel"))
    rig.start_sweeper()  # takes the lease back
    ended = rig.ended(update["id"])
    assert (ended["status"], ended["version"]) == ("cancelled", None)
    long_ago = time.time() - 2 * ORPHAN_AGE_SECONDS
    for upload in rig.artifacts.glob("??/*.tar"):
        os.utime(upload, (long_ago, long_ago))
    rig.start_sweeper()  # one that has just started looks at the store soon
    until(lambda: stored(rig) == [], what="the upload to go")
    rig.check_ledger()
