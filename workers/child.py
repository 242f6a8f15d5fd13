"""Training children: the supervisor's handle on one, and what runs inside it.

An update trains in a process of its own, forked from a server that has torch already imported, so that a crash,
an out-of-memory kill or a hung kernel costs one attempt and not the worker. Supervisor and child talk over one
pipe; the child's life hangs on it: when the supervisor's end closes, the child exits at once.
Importing this module does not import torch.
"""

import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from structlog.contextvars import get_contextvars

from workers.child_logs import bind_context, configure_child_logging
from workers.training.contract import (
    EvaluateRequest,
    Outcomes,
    ProbeResult,
    Progress,
    Signal,
    TrainRequest,
    TrainResult,
)
from workers.training.errors import Cancelled, ChildDied, Stopped, TrainingFailed, reason_of
from workers.watchdog import Limits, Watchdog

__all__ = ["Cancelled", "ChildDied", "Stopped", "Trainer", "TrainingFailed", "start_forkserver"]

TICK_SECONDS = 0.25
"""How often a supervisor looks at its watch, and how often a child reports at most."""
HEARTBEAT_SECONDS = 1.0
"""A child repeats its last report after this long, whatever it is busy with."""
GRACE_SECONDS = 20.0
"""How long a child may take to obey a signal, or to leave, before it is killed."""

OnProgress = Callable[[Progress], None]
Watch = Callable[[], Signal | None]

log = logging.getLogger(__name__)
_context = multiprocessing.get_context("forkserver")


@dataclass(slots=True)
class _Server:
    """What this process knows of its fork server, of which there is one."""

    started: bool = False
    torch_threads: int | None = None


_server = _Server()


def start_forkserver(torch_threads: int | None) -> None:
    """Start the fork server in the background; call it early, from the main thread.

    Args:
        torch_threads: threads each child computes with; `None` leaves it to torch.
    """
    _server.torch_threads, _server.started = torch_threads, True
    # Read when torch loads its OpenMP runtime. Threads that spin at a barrier while another process holds their core
    # make training on a busy machine several times slower; threads that sleep cost next to nothing on an idle one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # The server takes no module path from its parent, so it must find this package by the environment.
    before, root = os.environ.get("PYTHONPATH"), str(Path(__file__).parents[1])
    if root not in (before or "").split(os.pathsep):
        os.environ["PYTHONPATH"] = root if not before else os.pathsep.join((root, before))
    _context.set_forkserver_preload(["workers.training.preload"])
    _ensure_running()


def _ensure_running() -> None:
    """Starts the fork server where there is none, deaf to SIGTERM and SIGINT until it ignores them by itself."""
    resource_tracker.ensure_running()  # as it starts, it unblocks both
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _kill_server() -> None:
    """Kills a fork server that hangs, so that the next child comes from a new one."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)  # nowhere to be had in public
    if pid is not None:
        log.error("fork_server_killed", extra={"fields": {"pid": pid}})
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class _Child:
    """A training child and the supervisor's end of its pipe.

    It is started in a thread of its own, for the fork server may still import torch, or hang: then nobody need wait.
    """

    def __init__(self) -> None:
        self.pipe, self._theirs = _context.Pipe()
        self._process = _context.Process(
            target=serve, args=(self._theirs, _server.torch_threads), name="training-child", daemon=True
        )
        self._ready = threading.Event()
        self._error: BaseException | None = None
        if not _server.started:
            start_forkserver(None)
        threading.Thread(target=self._start, name="child-start", daemon=True).start()

    def _start(self) -> None:
        try:
            _ensure_running()
            self._process.start()
        except BaseException as error:
            self._error = error
        finally:
            self._theirs.close()
            self._ready.set()

    def is_started(self, *, within: float) -> bool:
        """Waits for its start, so many seconds.

        Raises:
            ChildDied: the fork server died meanwhile.
        """
        if not self._ready.wait(within):
            return False
        if isinstance(self._error, EOFError | ConnectionError):
            raise ChildDied(None) from self._error
        if self._error is not None:
            raise self._error
        return True

    @property
    def pid(self) -> int | None:
        """Its process id; None before it is started."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None and self._process.is_alive()

    def kill(self) -> None:
        """Ends it at once."""
        if self.is_alive:
            self._process.kill()

    def status(self) -> int | None:
        """Waits for its end and returns the exit status (negative: the signal); None where it does not end."""
        self._process.join(GRACE_SECONDS)
        return self._process.exitcode

    def close(self) -> None:
        """Ends it: it exits when its pipe closes, and is killed when it does not. One that starts later finds nobody there."""
        self.pipe.close()
        self._ready.wait(1.0)
        if self.pid is None:
            return
        self._process.join(1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(GRACE_SECONDS)
        if self._process.is_alive():  # the kernel holds it: whoever waits for it may wait for ever
            log.error("child_abandoned", extra={"fields": {"pid": self.pid}})
        else:
            self._process.close()


class Trainer:
    """A supervisor's handle on one training child. Use as a context manager, from one thread.

    The child serves any number of requests. After `Cancelled`, `Stopped` and `TrainingFailed` it is ready for the
    next one; after `ChildDied`, or after an exception of the caller's own callbacks, the next request
    starts a new child.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._child: _Child | None = None
        self._number = 0

    def __enter__(self) -> Self:
        self._child = _Child()  # gets ready while the first request is made
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The child's process id.

        Raises:
            ChildDied: there is no child now.
        """
        if self._child is None or not self._child.is_started(within=GRACE_SECONDS):
            raise ChildDied(None)
        return cast(int, self._child.pid)

    def train(self, request: TrainRequest, *, on_progress: OnProgress, watch: Watch) -> TrainResult:
        """Train one update in the child and wait for it.

        Args:
            on_progress: gets the child's reports, four a second at most and at least one a second.
            watch: asked every quarter of a second; `"cancel"` or `"stop"` is passed on to the child.

        Raises:
            Cancelled: the child gave up, as `watch` asked.
            Stopped: the child wrote a checkpoint, as `watch` asked.
            TrainingFailed: the update cannot be trained; `code` says why. With `no_progress`, and with `out_of_memory`
                where the child held more than it may, it has been killed.
            ChildDied: the child ended without an answer.
        """
        return cast(TrainResult, self._ask("train", request, on_progress, watch))

    def probe(self, request: TrainRequest, *, on_progress: OnProgress, watch: Watch) -> ProbeResult:
        """Take the first steps of an update (`request.share`) in the child and wait. Callbacks and errors as with `train`."""
        return cast(ProbeResult, self._ask("probe", request, on_progress, watch))

    def evaluate(self, request: EvaluateRequest, *, on_progress: OnProgress, watch: Watch) -> Outcomes:
        """Score one version in the child and wait for it. Callbacks and errors as with `train`."""
        return cast(Outcomes, self._ask("evaluate", request, on_progress, watch))

    def close(self) -> None:
        """End the child: it exits when its pipe closes, and is killed when it does not."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _living(self, watch: Watch) -> _Child:
        """A child that lives, a new one where the last has gone."""
        if self._child is not None and self._child.pid is not None and not self._child.is_alive:
            self.close()
        if self._child is None:
            self._child = _Child()
        deadline = time.monotonic() + self._limits.progress_timeout_seconds
        while not self._child.is_started(within=TICK_SECONDS):
            if (wanted := watch()) is not None:
                raise Cancelled if wanted == "cancel" else Stopped
            if time.monotonic() > deadline:
                _kill_server()
                raise TrainingFailed(
                    "no_progress",
                    f"the training process was not there after {self._limits.progress_timeout_seconds:g} s: its fork server hangs",
                )
        return self._child

    def _ask(self, call: str, request: object, on_progress: OnProgress, watch: Watch) -> object:
        try:
            child = self._living(watch)
        except BaseException:
            self.close()
            raise
        self._number += 1
        try:
            child.pipe.send((call, self._number, (request, get_contextvars())))
            return self._wait(child.pipe, on_progress, watch)
        except (EOFError, ConnectionError) as error:
            raise self._death(child) from error
        except (Cancelled, Stopped, TrainingFailed):
            raise
        except BaseException:
            # What the child is up to now is nobody's business any more.
            self._kill()
            raise

    def _wait(self, pipe: Connection, on_progress: OnProgress, watch: Watch) -> object:
        """Relay progress and signals until the child answers."""
        told: Signal | None = None
        deadline = float("inf")
        watchdog = Watchdog(self.pid, self._limits)
        while True:
            wanted = watch()
            if wanted is not None and wanted != told and told != "cancel":
                pipe.send((wanted, self._number, None))
                told, deadline = wanted, time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline:
                self._kill()
                raise Cancelled if told == "cancel" else Stopped
            self._obey(watchdog)
            if not pipe.poll(TICK_SECONDS):
                continue
            kind, number, content = pipe.recv()
            if number != self._number:
                continue
            if kind == "progress":
                watchdog.saw(content)
                on_progress(content)
            elif kind == "failed":
                raise content
            else:
                return content

    def _obey(self, watchdog: Watchdog) -> None:
        try:
            watchdog.check()
        except TrainingFailed:
            self._kill()
            raise

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
        self.close()

    def _death(self, child: _Child) -> ChildDied:
        died = ChildDied(child.status())
        self._kill()
        return died


# What follows runs in the child.


def serve(pipe: Connection, torch_threads: int | None) -> None:
    """Answer requests until the supervisor's end of the pipe closes."""
    # Only the supervisor decides when a child ends; signals to the whole process group are not for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    configure_child_logging()
    inbox = Inbox(pipe)
    if torch_threads is not None:
        import torch

        torch.set_num_threads(torch_threads)
    while True:
        call, number, (request, context) = inbox.requests.get()
        bind_context(context)
        log.info("child_request", extra={"fields": {"call": call}})
        with Reporter(pipe, number) as reporter:
            outcome = answer(call, request, reporter, lambda number=number: inbox.signal_for(number))  # type: ignore[misc]  # a default argument binds the loop variable
        reporter.send(*outcome)


def answer(call: str, request: Any, reporter: "Reporter", should_stop: Watch) -> tuple[str, object]:
    """Do what one request asks for; whatever goes wrong becomes an answer too."""
    try:
        if call in ("train", "probe"):
            from workers.evaluation.kept import forget
            from workers.training.loop import train
            from workers.training.probing import probe

            forget()
            run = train if call == "train" else probe
            return "done", run(request, on_progress=reporter.report, should_stop=should_stop)
        from workers.evaluation.runner import evaluate

        return "done", evaluate(request, on_progress=reporter.report, should_stop=should_stop)
    except (Cancelled, Stopped, TrainingFailed) as error:
        return "failed", error.with_traceback(None)
    except MemoryError as error:
        return "failed", TrainingFailed("out_of_memory", f"the training process ran out of memory: {error}")
    except Exception as error:
        code = "out_of_memory" if type(error).__name__ == "OutOfMemoryError" else "internal_error"
        log.exception("child_failed")
        detail = {"traceback": traceback.format_exc()[-4000:]}
        return "failed", TrainingFailed(code, f"{type(error).__name__}: {reason_of(error)}", detail)


class Inbox:
    """Reads the pipe in a thread: requests go on a queue, signals into a table, and the end ends the process."""

    def __init__(self, pipe: Connection) -> None:
        self.requests: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self._signals: dict[int, Signal] = {}
        threading.Thread(target=self._read, args=(pipe,), name="inbox", daemon=True).start()

    def signal_for(self, number: int) -> Signal | None:
        """What the supervisor asked of request `number` last."""
        return self._signals.get(number)

    def _read(self, pipe: Connection) -> None:
        while True:
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                # The supervisor is gone. Nothing here is worth finishing: the checkpoint on disk is whole.
                os._exit(0)
            if message[0] in ("cancel", "stop"):
                self._signals[message[1]] = message[0]
            else:
                self.requests.put(message)


def gpu_memory_bytes() -> int | None:
    """What this process holds on its GPU, cached blocks included; None where it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved())


class Reporter:
    """Sends a request's progress: four reports a second at most, at least one a second while it lasts."""

    def __init__(self, pipe: Connection, number: int) -> None:
        self._pipe = pipe
        self._number = number
        self._lock = threading.Lock()
        self._last = Progress("loading")
        self._sent_at = float("-inf")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def report(self, progress: Progress) -> None:
        """Note where the request stands, and tell the supervisor when it is time or the phase is new."""
        new_phase = progress.phase != self._last.phase
        self._last = replace(progress, gpu_memory_bytes=gpu_memory_bytes())
        if (
            new_phase
            or progress.step == progress.total_steps > 0
            or time.monotonic() - self._sent_at >= TICK_SECONDS
        ):
            self.send("progress", self._last)

    def send(self, kind: str, content: object) -> None:
        """Send one message about this request."""
        with self._lock, suppress(ConnectionError):
            self._pipe.send((kind, self._number, content))
            self._sent_at = time.monotonic()

    def _beat(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            silent = time.monotonic() - self._sent_at
            if silent >= HEARTBEAT_SECONDS - TICK_SECONDS:
                eta = self._last.eta_seconds
                self.send(
                    "progress",
                    replace(self._last, eta_seconds=None if eta is None else max(0.0, eta - silent)),
                )
