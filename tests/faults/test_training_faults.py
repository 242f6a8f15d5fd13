"""Faults of the training child: the attempt is counted, the next goes on from the checkpoint, and not for ever."""

import signal

import pytest

from tests.faults.rig import SHORT, Rig, until

pytestmark = pytest.mark.slow


def test_a_killed_child_costs_one_attempt_and_the_next_goes_on_from_the_checkpoint(rig: Rig) -> None:
    rig.learnable("one")
    worker = rig.start_worker()
    update = rig.world.request("one", training=SHORT)["id"]
    progress = until(
        lambda: (found := rig.at(update)) and found["checkpoint_step"] and found, what="a checkpoint"
    )
    worker.training_child().send_signal(signal.SIGKILL)
    until(lambda: rig.world.update(update)["attempt"] == 2, what="the second attempt")
    resumed = rig.at(update)
    assert resumed["step"] >= progress["checkpoint_step"]
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"], ended["version"]) == ("promoted", 2, 1)
    rig.check_ledger()


def test_a_child_that_holds_too_much_memory_is_killed_and_the_update_fails_in_the_end_with_the_reason(
    rig: Rig,
) -> None:
    rig.start_worker(PALIMPSEST_MEMORY_LIMIT_BYTES=str(50 * 2**20))
    rig.learnable("one")
    update = rig.world.request("one", training=SHORT)["id"]
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"], ended["error"]["code"]) == ("failed", 3, "out_of_memory")
    assert "PALIMPSEST_MEMORY_LIMIT_BYTES" in ended["error"]["message"]
    assert rig.world.get("/models/triage")["champion"] == 0
    rig.check_ledger()


def test_a_child_that_hangs_is_killed_and_the_next_attempt_finishes(rig: Rig) -> None:
    worker = rig.start_worker(PALIMPSEST_PROGRESS_TIMEOUT_SECONDS="20")
    rig.learnable("one")
    update = rig.world.request("one", training=SHORT)["id"]
    rig.at(update)
    hung = worker.training_child()
    hung.suspend()
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"], ended["version"]) == ("promoted", 2, 1)
    assert "no_progress" in [event["data"].get("code") for event in rig.events(update)]
    assert not hung.is_running()
    rig.check_ledger()
