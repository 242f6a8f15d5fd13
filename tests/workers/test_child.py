"""Training children: they report, obey, die alone, and pick up where the last one was killed."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from workers.child import Cancelled, ChildDied, Stopped, Trainer, TrainingFailed, start_forkserver
from workers.training.contract import EvaluateRequest, Progress, Signal, TrainRequest
from workers.watchdog import Limits

RequestFor = Callable[..., TrainRequest]
ROOT = Path(__file__).parents[2]
LONG = {"epochs": 5000}


@pytest.fixture(scope="module", autouse=True)
def _forkserver() -> None:
    start_forkserver(1)


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    with Trainer() as trainer:
        yield trainer


def weights(folder: str) -> list[bytes]:
    return [Path(folder, name).read_bytes() for name in ("adapter_model.safetensors", "head.safetensors")]


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether a process ends (or is a zombie that nobody has collected yet) within some seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def in_training(seen: list[Progress], steps: int = 2) -> bool:
    return bool(seen) and seen[-1].phase == "training" and seen[-1].step >= steps


def test_two_children_give_the_same_bytes(request_for: RequestFor) -> None:
    outputs = []
    for name in ("a", "b"):
        request = request_for("replay", ["sport", "space"], output=name)
        with Trainer() as trainer:
            result = trainer.train(request, on_progress=lambda _: None, watch=lambda: None)
        assert result.labels == ("sport", "space")
        outputs.append(weights(request.output))
    assert outputs[0] == outputs[1]


def test_one_child_trains_and_then_scores(trainer: Trainer, request_for: RequestFor) -> None:
    request = request_for("sequential", ["sport", "space"])
    child = trainer.pid
    trainer.train(request, on_progress=lambda _: None, watch=lambda: None)
    scoring = EvaluateRequest("text-classification", request.base, request.output, request.fresh)
    outcomes = trainer.evaluate(scoring, on_progress=lambda _: None, watch=lambda: None)
    assert len(outcomes.correct) == 24
    assert trainer.pid == child


def test_cancel_ends_training_at_the_next_step_and_the_child_is_ready_again(
    trainer: Trainer, request_for: RequestFor
) -> None:
    seen: list[Progress] = []
    request = request_for("sequential", ["sport", "space"], **LONG)
    child = trainer.pid
    began = time.monotonic()
    with pytest.raises(Cancelled):
        trainer.train(request, on_progress=seen.append, watch=lambda: "cancel" if in_training(seen) else None)
    assert time.monotonic() - began < 60
    assert not Path(request.output).exists()
    trainer.train(
        request_for("sequential", ["sport"], output="next"), on_progress=seen.append, watch=lambda: None
    )
    assert trainer.pid == child


def test_reports_keep_coming_and_are_not_a_flood(trainer: Trainer, request_for: RequestFor) -> None:
    at: list[float] = []
    seen: list[Progress] = []

    def note(progress: Progress) -> None:
        seen.append(progress)
        at.append(time.monotonic())

    with pytest.raises(Cancelled):
        trainer.train(
            request_for("sequential", ["sport", "space"], **LONG),
            on_progress=note,
            watch=lambda: "cancel" if len(seen) > 2 and at[-1] - at[0] > 4 else None,
        )
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert max(gaps) < 2.0
    assert len(at) / (at[-1] - at[0]) < 6


def test_stop_writes_a_checkpoint_that_another_child_goes_on_from(request_for: RequestFor) -> None:
    straight, halted = (
        request_for("sequential", ["sport", "space"], output=name, epochs=60) for name in ("s", "h")
    )
    seen: list[Progress] = []
    with Trainer() as trainer:
        trainer.train(straight, on_progress=lambda _: None, watch=lambda: None)
        with pytest.raises(Stopped):
            trainer.train(
                halted, on_progress=seen.append, watch=lambda: "stop" if in_training(seen) else None
            )
    seen.clear()
    with Trainer() as trainer:
        trainer.train(halted, on_progress=seen.append, watch=lambda: None)
    assert min(progress.step for progress in seen if progress.phase == "training") > 1
    assert weights(halted.output) == weights(straight.output)


def test_a_child_killed_mid_step_is_named_and_the_next_one_resumes_to_the_same_bytes(
    request_for: RequestFor,
) -> None:
    straight, killed = (
        request_for("sequential", ["sport", "space"], output=name, epochs=80, checkpoint_seconds=0.1)
        for name in ("s", "k")
    )
    seen: list[Progress] = []

    def kill_in_training() -> None:
        if in_training(seen) and any(Path(killed.checkpoints).glob("step-*/position.json")):
            os.kill(trainer.pid, signal.SIGKILL)

    with Trainer() as trainer:
        trainer.train(straight, on_progress=lambda _: None, watch=lambda: None)
        with pytest.raises(ChildDied, match="SIGKILL, probably out of memory") as caught:
            trainer.train(killed, on_progress=seen.append, watch=kill_in_training)
        assert caught.value.signal == "SIGKILL"
        assert caught.value.exit_code == -9
        seen.clear()
        trainer.train(killed, on_progress=seen.append, watch=lambda: None)
    assert min(progress.step for progress in seen if progress.phase == "training") > 0
    assert weights(killed.output) == weights(straight.output)


@pytest.fixture
def hung_forkserver(trainer: Trainer) -> Iterator[int]:
    """The fork server, suspended: no child comes from it."""
    server = int(Path(f"/proc/{trainer.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(server, signal.SIGSTOP)
    yield server
    with suppress(ProcessLookupError):
        os.kill(server, signal.SIGCONT)


@pytest.mark.parametrize(("wanted", "end"), [("stop", Stopped), ("cancel", Cancelled)])
def test_nobody_who_is_told_to_stop_waits_for_a_child_that_is_not_there_yet(
    hung_forkserver: int, request_for: RequestFor, wanted: Signal, end: type[Exception]
) -> None:
    with Trainer() as late, pytest.raises(end):
        late.train(request_for("sequential", ["sport"]), on_progress=lambda _: None, watch=lambda: wanted)
    os.kill(hung_forkserver, signal.SIGCONT)  # the child that comes after all finds nobody there
    until_childless(hung_forkserver, but=1)


def test_a_fork_server_that_hangs_costs_an_attempt_and_not_the_worker(
    hung_forkserver: int, request_for: RequestFor
) -> None:
    request = request_for("sequential", ["sport"])
    with Trainer(Limits(progress_timeout_seconds=1.0)) as trainer:
        with pytest.raises(TrainingFailed, match="fork server hangs") as caught:
            trainer.train(request, on_progress=lambda _: None, watch=lambda: None)
        assert caught.value.code == "no_progress"
    assert gone(hung_forkserver), "the next child would wait for it too"
    with Trainer() as trainer:
        trainer.train(request, on_progress=lambda _: None, watch=lambda: None)


def until_childless(server: int, *, but: int) -> None:
    """Waits until a fork server has no living child but so many."""
    deadline = time.monotonic() + 60
    while len(psutil.Process(server).children()) > but:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_error_in_the_child_comes_back_with_its_code(trainer: Trainer, request_for: RequestFor) -> None:
    request = request_for("sequential", ["sport"])
    targets = replace(request, adapter=replace(request.adapter, target_modules="nothing"))
    with pytest.raises(TrainingFailed) as caught:
        trainer.train(targets, on_progress=lambda _: None, watch=lambda: None)
    assert caught.value.code == "bad_target_modules"
    with pytest.raises(TrainingFailed) as unforeseen:
        trainer.train(replace(request, fresh="/nonexistent"), on_progress=lambda _: None, watch=lambda: None)
    assert unforeseen.value.code == "internal_error"
    assert unforeseen.value.message == "FileNotFoundError: No such file or directory"
    assert "Traceback" in unforeseen.value.detail["traceback"]


def test_signals_to_the_whole_group_do_not_end_a_child(trainer: Trainer, request_for: RequestFor) -> None:
    trainer.train(request_for("sequential", ["sport"]), on_progress=lambda _: None, watch=lambda: None)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(trainer.pid, number)
    assert not gone(trainer.pid, within=0.5)


def test_an_error_in_a_callback_ends_the_child(trainer: Trainer, request_for: RequestFor) -> None:
    child = trainer.pid

    def lost(_progress: Progress) -> None:
        raise PermissionError("the lease is lost")

    with pytest.raises(PermissionError):
        trainer.train(request_for("sequential", ["sport"], **LONG), on_progress=lost, watch=lambda: None)
    assert gone(child)
    trainer.train(
        request_for("sequential", ["sport"], output="v2"), on_progress=lambda _: None, watch=lambda: None
    )


def test_leaving_the_context_ends_the_child() -> None:
    with Trainer() as trainer:
        child = trainer.pid
    assert gone(child)
    with pytest.raises(ChildDied):
        _ = trainer.pid


def test_a_child_exits_in_the_middle_of_training_when_its_supervisor_is_killed(
    request_for: RequestFor, tmp_path: Path
) -> None:
    (tmp_path / "request").write_bytes(pickle.dumps(request_for("sequential", ["sport", "space"], **LONG)))
    code = (
        "import pickle, sys; from workers.child import Trainer, start_forkserver\n"
        "start_forkserver(1)\n"
        "request = pickle.load(open(sys.argv[1], 'rb'))\n"
        "with Trainer() as trainer:\n"
        "    print(trainer.pid, flush=True)\n"
        "    say = lambda p: print(p.phase, p.step, flush=True)\n"
        "    trainer.train(request, on_progress=say, watch=lambda: None)\n"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "request")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    while "training" not in supervisor.stdout.readline():
        pass
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    assert gone(child)


def test_the_supervisor_side_imports_no_torch() -> None:
    code = "import sys, workers.child; sys.exit(bool({'torch', 'transformers', 'peft'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "error", [Cancelled(), Stopped(), TrainingFailed("c", "m", {"a": 1}), ChildDied(-11)]
)
def test_every_ending_survives_the_pipe(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_the_preload_ignores_signals_that_came_first_and_collects_garbage_again_when_an_import_fails() -> (
    None
):
    code = (
        "import gc, os, signal, sys\n"
        "both = {signal.SIGTERM, signal.SIGINT}\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, both)\n"
        "[os.kill(os.getpid(), number) for number in both]\n"
        "sys.modules['peft'] = None\n"
        "try:\n"
        "    import workers.training.preload\n"
        "except ImportError:\n"
        "    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) & both\n"
        "    sys.exit(0 if gc.isenabled() and not blocked else 1)\n"
        "sys.exit(2)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
