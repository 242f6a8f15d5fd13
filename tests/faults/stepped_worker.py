"""A worker that moves only when told to: the real `run_update` in a thread that waits at every boundary.

What takes minutes in a real worker takes none here: the training child's part is played by a stand-in that hands out
copies of one version folder, trained for real, and answers of the skill it was told to have. Everything else, from
the claim to the commit of the verdict, is the product's own.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pytest

from service.updates.leases import Claim
from workers import pipeline
from workers.child import Cancelled, Stopped
from workers.lease import Lease
from workers.training.contract import EvaluateRequest, Outcomes, TrainRequest, TrainResult
from workers.training.folders import read_json, write_json

PATIENCE_SECONDS = 120.0  # a machine may be busy; a worker that has not moved by then hangs
RANDOM = 1000
# Of the failpoints those where no transaction is open: a worker that stood in one would keep its locks.
BOUNDARIES = frozenset({"prepared", "trained", "artifact_stored", "evaluating", "scored", "recorded"})

this_worker: ContextVar["SteppedWorker"] = ContextVar("this_worker")


class Killed(BaseException):
    """The process is gone: of what follows, nothing runs that catches less than everything."""


@dataclass(frozen=True)
class Recording:
    """One real training: its strategy, the version folder it wrote, state included, and what it reported."""

    strategy: str
    folder: Path
    result: TrainResult


class SteppedWorker:
    """One worker on one claim. `step` lets it go on to the next boundary, `kill` ends it where it stands.

    It stands at `claimed`, then at each of `BOUNDARIES`, and has `ended` when `run_update` has returned.
    """

    def __init__(self, claim: Claim, *, recording: Recording, skill: float = 1.0) -> None:
        self.claim, self.recording = claim, recording
        self.stopping = threading.Event()
        self.lease: SteppedLease | None = None
        self.skill = skill  # share of the eval rows that a version trained by this worker gets right
        self.trouble: Exception | None = None  # what the child answers with, once
        self.at = "claimed"
        self._error: BaseException | None = None
        self._killed = False
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do, or nobody left to do it."""
        return self.at == "ended"

    def step(self) -> None:
        """Goes on to the next boundary. An exception that `run_update` let out comes out here."""
        self._go.release()
        assert self._stands.acquire(timeout=PATIENCE_SECONDS), f"the worker hangs after {self.at}"
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Goes on to the end."""
        while not self.ended:
            self.step()

    def kill(self) -> None:
        """Ends here and now; the row, the lease and the work folder stay as they are."""
        self._killed = True
        self.step()

    def stand(self, where: str) -> None:
        """Waits at a boundary. Called by the worker's own thread."""
        self.at = where
        self._stands.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    def _run(self) -> None:
        this_worker.set(self)
        self._go.acquire()
        try:
            if not self._killed:
                pipeline.run_update(self.claim, stopping=self.stopping)
        except Killed:
            pass
        except BaseException as error:
            self._error = error
        self.at = "ended"
        self._stands.release()


class SteppedLease(Lease):
    """A lease that is renewed when the test says so, and not by the clock."""

    def __enter__(self) -> Self:
        this_worker.get().lease = self
        return self

    def __exit__(self, *_exc: object) -> None:
        this_worker.get().lease = None

    def renew(self) -> None:
        """Renews once, as the thread of a real one does every second."""
        self._done = _Once()
        self._keep()


class _Once(threading.Event):
    """An event that comes after the second look."""

    def wait(self, timeout: float | None = None) -> bool:  # the clock's part is played here
        came = self.is_set()
        self.set()
        return came


class StandIn:
    """Plays `workers.child.Trainer`: hands out the recorded version, and answers as well as it is skilled."""

    def __init__(self, *_limits: object) -> None:
        self._worker = this_worker.get()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        return None

    def train(self, request: TrainRequest, *, on_progress: object, watch: Callable[[], str | None]) -> Any:
        """Leaves the recorded folder as the version of this request."""
        self._obey(watch)
        folder, recording = Path(request.output), self._worker.recording
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(recording.folder, folder)
        if request.strategy != recording.strategy:
            shutil.rmtree(folder / "state")
        facts = read_json(folder / "version.json", code="no_version")
        write_json(
            folder / "version.json", facts | {"lineage": dict(request.lineage), "skill": self._worker.skill}
        )
        fresh = len(Path(request.fresh).read_bytes().splitlines())
        return replace(recording.result, labels=request.labels, fresh_rows=fresh)

    def evaluate(
        self, request: EvaluateRequest, *, on_progress: object, watch: Callable[[], str | None]
    ) -> Outcomes:
        """Answers right on a share of the rows: the version's skill."""
        self._obey(watch)
        facts = read_json(Path(request.version or "") / "version.json", code="no_version")
        rows = [json.loads(line) for line in Path(request.rows).read_bytes().splitlines()]
        right = tuple(_luck(row["id"]) < facts["skill"] for row in rows)
        return Outcomes(
            example_ids=tuple(row["id"] for row in rows), predicted=(0,) * len(rows), confidence=(0.5,) * len(rows),
            correct=right, labels=("a",), seconds=0.0,
        )  # fmt: skip

    def _obey(self, watch: Callable[[], str | None]) -> None:
        trouble, self._worker.trouble = self._worker.trouble, None
        if trouble is not None:
            raise trouble
        signal = watch()
        if signal is not None:
            raise Cancelled if signal == "cancel" else Stopped


def _luck(example_id: int) -> float:
    """A number in [0, 1) that is the same for the same row."""
    return int.from_bytes(hashlib.blake2b(str(example_id).encode(), digest_size=4).digest()) % RANDOM / RANDOM


def step_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `run_update` wait for its `SteppedWorker` at every failpoint outside a transaction."""

    def reach(point: str) -> None:
        if point in BOUNDARIES:
            this_worker.get().stand(point)

    monkeypatch.setattr(pipeline, "Lease", SteppedLease)
    monkeypatch.setattr(pipeline, "Trainer", StandIn)
    monkeypatch.setattr(pipeline, "reach", reach)
