"""Faults of the worker: killed, frozen past its lease, told to stop, and killed at every boundary of an update."""

import os
import signal
import time

import psutil
import pytest

from service.failpoints import POINTS
from tests.faults.rig import LEASE_SECONDS, LONG, QUICK, SHORT, Part, Rig, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(900),
]  # leases run out in real time, and machines are shared
ELSEWHERE = {
    "before_request_commit",
    "after_request_commit",
    "dial_point_recorded",
    "repeat_recorded",  # but for one with repeats
    "forecast_probe_kept",
    "webhook_sent",
}  # no update meets these
BOUNDARIES = sorted(POINTS - ELSEWHERE)


def test_a_killed_workers_child_goes_with_it_and_another_worker_finishes_the_update(rig: Rig) -> None:
    worker = rig.start_worker()
    rig.learnable("one")
    update = rig.world.request("one", training=SHORT)["id"]
    rig.at(update)
    below = worker.descendants()
    worker.send(signal.SIGKILL)
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    rig.start_worker()
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"], ended["version"]) == ("promoted", 2, 1)
    rig.check_ledger()


def test_a_worker_frozen_past_its_lease_can_write_nothing_when_it_wakes(rig: Rig) -> None:
    frozen = rig.start_worker()
    rig.learnable("one")
    update = rig.world.request("one", training={**LONG, "epochs": 20})["id"]
    rig.at(update)
    frozen.send(signal.SIGSTOP)
    rig.start_worker()
    until(lambda: rig.world.update(update)["attempt"] == 2, what="the second attempt")
    time.sleep(LEASE_SECONDS)  # both are at work now, the child of the frozen worker too
    frozen.send(signal.SIGCONT)
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"], ended["version"]) == ("promoted", 2, 1)
    until(lambda: "lease_lost" in frozen.log, what="the frozen worker's notice of its loss")
    assert [event["type"] for event in rig.events(update)] == [
        "queued", "training", "lease_expired", "queued", "training", "evaluating", "promoted",
    ]  # fmt: skip
    rig.check_ledger()


@pytest.mark.parametrize("whom", ["process", "group"])
def test_a_worker_told_to_stop_is_gone_in_seconds_and_uses_up_no_attempt(rig: Rig, whom: str) -> None:
    worker = rig.start_worker()
    rig.learnable("one")
    update = rig.world.request("one", training=LONG)["id"]
    rig.at(update, step=3)
    below = worker.descendants()
    (worker.send if whom == "process" else worker.send_group)(signal.SIGTERM)
    assert worker.gone(seconds=30) == 0
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    back = rig.world.update(update)
    assert (back["status"], back["attempt"]) == ("queued", 1)
    assert "checkpoint is kept" in rig.events(update)[-1]["data"]["reason"]
    rig.start_worker()
    assert rig.at(update)["checkpoint_step"] >= 3
    rig.world.ok(rig.world.client.post(f"/v1/updates/{update}/cancel"))
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"]) == ("cancelled", 1)
    rig.check_ledger()


def test_a_worker_told_to_stop_while_it_still_starts_its_child_gives_the_attempt_back_at_once(
    rig: Rig,
) -> None:
    rig.learnable("one")
    update = rig.world.request("one", training=QUICK)["id"]
    worker = rig.start_worker(anew=True)  # it imports torch, for seconds
    until(lambda: "update_claimed" in worker.log, every=0.02, what="the claim")
    hang(worker)
    worker.send_group(signal.SIGTERM)
    assert worker.gone(seconds=30) == 0
    back = rig.world.update(update)
    assert (back["status"], back["attempt"]) == ("queued", 1)
    rig.start_worker()
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"], ended["version"]) == ("promoted", 1, 1)
    rig.check_ledger()


def hang(worker: Part) -> None:
    """Suspends the fork server, so that no child comes from it, however fast it was."""
    for process in psutil.Process(worker.pid).children():
        if "forkserver" in " ".join(process.cmdline()):
            process.suspend()


def test_a_worker_that_hangs_in_a_file_system_leaves_and_gives_back_what_else_it_was_at(rig: Rig) -> None:
    hung = rig.start_worker(concurrency=2, PALIMPSEST_WORKER_TIMEOUT_SECONDS="6")
    rig.learnable("one", "two")
    assert rig.ended(rig.world.request("one", training=QUICK)["id"])["version"] == 1
    (stored,) = rig.artifacts.glob("??/*.tar")
    aside = rig.folder / "aside"
    stored.rename(aside)
    os.mkfifo(stored)  # whoever opens it to read hangs in the kernel, as with a mount whose server has gone
    rig.world.model("other")
    rig.world.task("one", model="other")
    beside = rig.world.request("one", model="other", training=LONG)["id"]
    rig.at(beside, step=3)
    below = hung.descendants()

    update = rig.world.request("two", training=QUICK)["id"]
    assert hung.gone(seconds=90) == os.EX_SOFTWARE
    assert "holder_hangs" in hung.log
    assert "in get_folder" in hung.log, "the log does not say where it hangs"
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    back = rig.world.update(beside)
    assert (back["status"], back["attempt"]) == ("queued", 1)
    assert "checkpoint is kept" in rig.events(beside)[-1]["data"]["reason"]
    rig.world.ok(rig.world.client.post(f"/v1/updates/{beside}/cancel"))

    aside.replace(stored)
    rig.start_worker()
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"], ended["version"]) == ("promoted", 2, 2)
    assert [event["type"] for event in rig.events(update)] == [
        "queued", "training", "lease_expired", "queued", "training", "evaluating", "promoted",
    ]  # fmt: skip
    rig.check_ledger()


@pytest.mark.timeout(1500)  # a dozen workers, one after the other
def test_an_update_survives_the_death_of_its_worker_at_every_boundary(rig: Rig) -> None:
    """One update, a death at each boundary: the first time it is reached it kills the worker, the last after the end."""
    rig.start_api(PALIMPSEST_MAX_ATTEMPTS=str(len(BOUNDARIES) + 1))
    armed = rig.armed(",".join(f"{point}=kill" for point in BOUNDARIES))
    worker = rig.start_worker(**armed)
    rig.learnable("one")
    update = rig.world.request("one", training=SHORT)["id"]
    for _ in BOUNDARIES:
        assert worker.gone(seconds=240) == -signal.SIGKILL, worker.log
        worker = rig.start_worker(**armed)
    ended = rig.ended(update)
    assert sorted(path.name for path in (rig.folder / "failpoints").iterdir()) == BOUNDARIES
    assert (ended["status"], ended["version"]) == ("promoted", 1)
    assert (
        ended["attempt"] == len(BOUNDARIES) - 1
    )  # neither an uncommitted claim nor a recorded end costs one
    assert [move["kind"] for move in rig.world.get("/models/triage/history")["data"]] == [
        "promoted",
        "created",
    ]
    rig.check_ledger()
