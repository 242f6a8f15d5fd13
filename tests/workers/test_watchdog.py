"""The watchdog: what counts as progress, and what a child may hold."""

import os
import subprocess
import sys

import pytest

from workers.training.contract import Progress
from workers.training.errors import TrainingFailed
from workers.watchdog import Limits, Watchdog, machine_memory_bytes, resident_bytes

GENEROUS = 2**60


def test_a_heartbeat_that_repeats_itself_is_no_progress() -> None:
    watchdog = Watchdog(os.getpid(), Limits(progress_timeout_seconds=1e-6, memory_limit_bytes=GENEROUS))
    watchdog.saw(Progress("training", 3, 10))
    watchdog.saw(Progress("training", 3, 10, eta_seconds=4.0))
    with pytest.raises(TrainingFailed, match=r"no further for 1e-06 s \(training, step 3\)") as failed:
        watchdog.check()
    assert failed.value.code == "no_progress"


@pytest.mark.parametrize(
    "later",
    [Progress("training", 4), Progress("evaluating", 3), Progress("training", 3, checkpoint_step=3)],
    ids=["step", "phase", "checkpoint"],
)
def test_a_new_step_phase_or_checkpoint_is_progress(later: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("workers.watchdog.time.monotonic", lambda: now[0])
    watchdog = Watchdog(os.getpid(), Limits(progress_timeout_seconds=10, memory_limit_bytes=GENEROUS))
    watchdog.saw(Progress("training", 3))
    now[0] += 9
    watchdog.saw(later)
    now[0] += 9
    watchdog.check()
    now[0] += 2
    with pytest.raises(TrainingFailed, match="no further"):
        watchdog.check()


def test_memory_counts_the_helpers_of_a_child_too() -> None:
    alone = resident_bytes(os.getpid())
    filler = (
        "import sys; held = bytearray(b'x' * 200_000_000); print(len(held), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", filler], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as helper:
        assert helper.stdout is not None
        assert helper.stdin is not None
        helper.stdout.readline()
        together = resident_bytes(os.getpid())
        watchdog = Watchdog(os.getpid(), Limits(memory_limit_bytes=alone + 100_000_000))
        with pytest.raises(TrainingFailed, match="MiB of memory, and may hold") as failed:
            watchdog.check()
        helper.stdin.close()
    assert together > alone + 180_000_000
    assert failed.value.code == "out_of_memory"


def test_a_process_that_has_gone_holds_nothing() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert resident_bytes(gone.pid) == 0


def test_a_child_may_hold_nine_tenths_of_the_machine_where_nothing_else_is_said() -> None:
    assert Limits().memory_bytes == int(0.9 * machine_memory_bytes())
