"""Several processes that train one update: each takes its part of every batch, and their gradients are summed.

Plain data parallelism: every rank holds the whole base, so that more devices mean more rows per second and not
larger models. The lead (rank 0) is the training child itself; it starts the others, writes checkpoints and the version,
and ends them. They have no say: whatever they do is a function of the request, their rank and the gradients.

A rank weighs the mean loss of its rows by their share of the batch's predictions, so that the sums over the ranks are the loss and
the gradients of the whole batch: the same numbers that one process gets, up to the order of the additions. That
holds for losses that are means over predictions (plus terms that no row enters), which strategies declare by `many_devices`.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from workers.training.batches import Indices, Pick
from workers.training.contract import TrainRequest
from workers.training.devices import check_devices
from workers.training.errors import TrainingFailed
from workers.training.watching import Watch

JOIN_SECONDS = 120.0
"""How long a rank may take to start: it imports torch anew."""
SILENCE = timedelta(minutes=10)
"""How long a rank may keep the others waiting at a sum."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a rank is told when it starts. `folder` is where the ranks meet."""

    request: TrainRequest
    rank: int
    folder: str
    threads: int


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks that train together, as one of them sees it."""

    rank: int = 0
    size: int = 1

    def part(self, pick: Pick) -> Pick:
        """This rank's rows of a batch."""
        if self.size == 1:
            return pick
        # The one with the smaller piece of the fresh rows gets the larger one of the replayed.
        fresh = self._piece(len(pick.fresh), self.rank)
        replay = self._piece(len(pick.replay), self.size - 1 - self.rank)
        return Pick(pick.fresh[fresh], pick.replay[replay], pick.draw[replay])

    def _piece(self, rows: int, place: int) -> Indices:
        return torch.arange(rows).tensor_split(self.size)[place].numpy()

    def seed(self, seed: int, step: int) -> None:
        """Give every rank dropout of its own, the same whether or not the run was interrupted before `step`."""
        if self.size > 1:
            torch.manual_seed(hash((seed, step, self.rank)))

    def add_up(self, parameters: Iterable[nn.Parameter], losses: Sequence[Tensor]) -> list[Tensor]:
        """Sum gradients, in place, and losses over the ranks, in one message.

        A parameter that has a gradient on no rank is left without one.
        """
        if self.size == 1:
            return list(losses)
        trained = list(parameters)
        has = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.float32)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        parts = [*gradients, has.to(trained[0].device), torch.stack(list(losses))]
        flat = torch.cat([part.reshape(-1).float() for part in parts])
        distributed.all_reduce(flat)
        *sums, anyone, totals = (
            piece.view_as(part)
            for piece, part in zip(torch.split(flat, [part.numel() for part in parts]), parts, strict=True)
        )
        for parameter, total, count in zip(trained, sums, anyone.tolist(), strict=True):
            parameter.grad = total.to(parameter.dtype) if count else None
        return list(totals)


@contextmanager
def led(request: TrainRequest, watch: Watch) -> Iterator[Team]:
    """Assemble the request's team with this process as its lead; nobody is left when the context ends.

    Raises:
        TrainingFailed: `too_few_devices`; `device_lost` when a rank died, or the reason that the rank gave.
    """
    size = request.settings.devices
    check_devices(size)
    if size == 1:
        yield Team()
        return
    with tempfile.TemporaryDirectory(prefix="ranks-", dir=Path(request.output).parent) as folder:
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(1, size):
                started(Job(request, rank, folder, torch.get_num_threads()), ranks)
            await_ranks(ranks, Path(folder), watch)
            meet(0, size, folder)
            yield Team(0, size)
        except (RuntimeError, OSError) as error:
            reason = lost(ranks, Path(folder))
            if reason is None:
                raise
            raise reason from error
        finally:
            for process in ranks:
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
            leave()


def started(job: Job, ranks: "list[subprocess.Popen[bytes]]") -> None:
    """Start one rank and add it to `ranks`. It lives no longer than its standard input, which closes with this process."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    with Path(job.folder, f"errors-{job.rank}").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.training.follower"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    ranks.append(process)  # before anything else can go wrong: whoever is listed is ended
    assert process.stdin is not None  # noqa: S101 - it was asked for above
    process.stdin.write(pickle.dumps(job))
    process.stdin.flush()


def await_ranks(ranks: Sequence["subprocess.Popen[bytes]"], folder: Path, watch: Watch) -> None:
    """Wait until every rank has reported for duty. Raises `RuntimeError` when one dies or takes too long."""
    deadline = time.monotonic() + JOIN_SECONDS
    while len(list(folder.glob("ready-*"))) < len(ranks):
        watch.obey()
        if any(process.poll() is not None for process in ranks) or time.monotonic() > deadline:
            raise RuntimeError("a rank did not start")
        time.sleep(0.05)


def meet(rank: int, size: int, folder: str) -> None:
    """Join the group of ranks through a file in `folder`; on GPUs rank n takes device n."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size,
        timeout=SILENCE,
    )  # fmt: skip


def leave() -> None:
    """Leave the group, where there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def lost(ranks: Sequence["subprocess.Popen[bytes]"], folder: Path) -> TrainingFailed | None:
    """Why a rank is gone: what it said itself, or how it ended; `None` when all are well."""
    for told in sorted(folder.glob("failure-*")):
        reason = json.loads(told.read_text(encoding="utf-8"))
        return TrainingFailed(reason["code"], reason["message"], reason["detail"])
    dying = time.monotonic() + 1.0
    while time.monotonic() < dying and all(process.poll() is None for process in ranks):
        time.sleep(0.02)
    for rank, process in enumerate(ranks, start=1):
        if process.poll() not in (None, 0):
            tail = (folder / f"errors-{rank}").read_text(encoding="utf-8", errors="replace")[-2000:]
            return TrainingFailed(
                "device_lost",
                f"process {rank} of the {len(ranks) + 1} that trained together ended with exit code "
                f"{process.returncode}; it may have run out of memory",
                {"rank": rank, "exit_code": process.returncode, "errors": tail},
            )
    return None
