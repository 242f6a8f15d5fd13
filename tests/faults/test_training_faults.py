"""Faults of the training child: the attempt is counted, the next goes on from the checkpoint, and not for ever."""

import signal

import pytest

from tests.faults.rig import LONG, Rig, until

pytestmark = pytest.mark.slow
SHORT = {**LONG, "epochs": 40}


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
