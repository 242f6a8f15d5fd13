"""Several processes, one update: the numbers of a single one, and one end for all."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from workers.strategies.catalogue import STRATEGIES
from workers.training.batches import Pick
from workers.training.contract import Progress, TrainRequest
from workers.training.errors import Cancelled, Stopped, TrainingFailed
from workers.training.loop import train
from workers.training.teams import Team

RequestFor = Callable[..., TrainRequest]
TOLERANCE = 1e-4
FOR_MANY = sorted(name for name, strategy in STRATEGIES.items() if strategy.many_devices)


@pytest.fixture(autouse=True)
def _enough_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


def followers() -> list[int]:
    """Process ids of this process's ranks that are still there."""
    children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    return [int(pid) for pid in children.split() if b"follower" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize(("fresh", "replay"), [(8, 8), (7, 3), (1, 0), (0, 2), (16, 0)])
def test_the_ranks_together_take_every_row_once(size: int, fresh: int, replay: int) -> None:
    pick = Pick(np.arange(fresh), np.arange(replay), np.ones(replay, dtype=np.int64))
    parts = [Team(rank, size).part(pick) for rank in range(size)]
    for name in ("fresh", "replay", "draw"):
        taken = np.concatenate([getattr(mine, name) for mine in parts])
        assert sorted(taken) == sorted(getattr(pick, name))
    sizes = [len(mine.fresh) + len(mine.replay) for mine in parts]
    assert max(sizes) - min(sizes) <= 1 + (fresh % size + replay % size > size)


# The first strategy in the quick run, all others in the long one.
@pytest.mark.parametrize(
    "name", [FOR_MANY[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FOR_MANY[1:])]
)
def test_two_processes_give_the_loss_curve_of_one(
    request_for: RequestFor, rows_about: Any, quietly: Any, name: str
) -> None:
    parent = request_for(name, ["sport", "space"], output="parent", epochs=1)
    train(parent, **quietly)
    one, two = (
        request_for(
            name, ["sport", "space", "food"], output=f"on-{devices}", parent=parent.output, devices=devices,
            # 7 rows to a batch: no rank gets half, and the last batch of a pass is short.
            batch_size=7, gradient_accumulation=2, rows=rows_about(["food", "sport"], 9),
            buffer=rows_about(["space"], 5, first_id=500),
        )
        for devices in (1, 2)
    )  # fmt: skip
    alone, together = train(one, **quietly), train(two, **quietly)
    assert [step for step, _ in together.losses] == [step for step, _ in alone.losses]
    for (_, expected), (_, loss) in zip(alone.losses, together.losses, strict=True):
        assert loss == pytest.approx(expected, abs=TOLERANCE)
    for file in ("adapter_model.safetensors", "head.safetensors"):
        expected_tensors, tensors = (load_file(Path(r.output, file)) for r in (one, two))
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected_tensors[key], atol=1e-3, rtol=0)
    assert followers() == []


@pytest.mark.slow
def test_a_stopped_team_resumes_to_the_same_bytes_even_with_dropout(
    request_for: RequestFor, quietly: Any
) -> None:
    shape = replace(request_for("sequential", ["sport"]).adapter, dropout=0.2)
    straight, halted = (
        request_for("sequential", ["sport", "space"], output=output, devices=2, adapter=shape)
        for output in ("s", "h")
    )
    train(straight, **quietly)
    seen: list[Progress] = []
    with pytest.raises(Stopped):
        train(
            halted,
            on_progress=seen.append,
            should_stop=lambda: "stop" if seen and seen[-1].step == 4 else None,
        )
    assert followers() == []
    train(halted, **quietly)
    for file in ("adapter_model.safetensors", "head.safetensors"):
        assert Path(halted.output, file).read_bytes() == Path(straight.output, file).read_bytes()


@pytest.mark.slow
def test_a_cancelled_team_leaves_nobody_behind(request_for: RequestFor) -> None:
    seen: list[Progress] = []
    request = request_for("sequential", ["sport", "space"], devices=2)
    with pytest.raises(Cancelled):
        train(
            request,
            on_progress=seen.append,
            should_stop=lambda: "cancel" if seen and seen[-1].step == 2 else None,
        )
    assert followers() == []
    assert not list(Path(request.output).parent.glob("ranks-*"))


def test_a_rank_that_dies_fails_the_update_with_a_clear_error(request_for: RequestFor) -> None:
    def kill_a_rank(progress: Progress) -> None:
        if progress.phase == "training" and progress.step == 2:
            for pid in followers():
                os.kill(pid, signal.SIGKILL)

    request = request_for("sequential", ["sport", "space"], devices=2)
    with pytest.raises(TrainingFailed, match="process 1 of the 2") as caught:
        train(request, on_progress=kill_a_rank, should_stop=lambda: None)
    assert caught.value.code == "device_lost"
    assert caught.value.detail["exit_code"] == -signal.SIGKILL
    assert followers() == []


@pytest.mark.slow
def test_the_ranks_die_with_their_lead(tmp_path: Path) -> None:
    """The lead is killed while its rank waits to be met; nothing but the pipe tells the rank."""
    lead = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys, time; from workers.training.teams import Job, started\n"
            "from workers.training.contract import BaseFolder, TrainingSettings, TrainRequest\n"
            "request = TrainRequest('', BaseFolder('', ''), '', (), '', '', '', settings=TrainingSettings(devices=2))\n"
            "ranks = []; started(Job(request, 1, sys.argv[1], 1), ranks); print(ranks[0].pid, flush=True); time.sleep(100)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert lead.stdout is not None
    rank = int(lead.stdout.readline())
    wait_until(lambda: (tmp_path / "ready-1").exists())
    os.kill(rank, 0)
    lead.kill()
    lead.wait()
    wait_until(lambda: not alive(rank))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_more_devices_than_there_are_is_refused(request_for: RequestFor, quietly: Any) -> None:
    with pytest.raises(TrainingFailed, match="has 4 CPU cores") as caught:
        train(request_for("sequential", ["sport"], devices=5), **quietly)
    assert caught.value.code == "too_few_devices"


def test_a_strategy_of_one_device_refuses_two(
    request_for: RequestFor, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STRATEGIES["replay"], "many_devices", False)
    with pytest.raises(TrainingFailed) as caught:
        train(request_for("replay", ["sport"], devices=2), **quietly)
    assert caught.value.code == "strategy_unsupported"
