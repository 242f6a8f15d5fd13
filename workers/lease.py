"""The hold of this worker on one update, dial or forecast, renewed in the background while it works."""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import asdict
from typing import Any, Protocol, Self

from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from service.config import get_settings
from service.db import session_scope
from service.failpoints import reach
from service.signs_of_life import listen_for_life
from service.updates.leases import LeaseState, renew_lease
from workers.leaving import report_hanging
from workers.running_curve import RunningCurve
from workers.training.contract import Progress, Signal

log = get_logger(__name__)


class LeaseLost(Exception):
    """Another worker may hold the work by now; nothing more may be written."""


class Held(Protocol):
    """A claim, on an update or on a leased row."""

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def subject(self) -> str:
        """The id of what is held."""


class Lease:
    """Renews a claim once a second, writes the progress with it, and passes on what the child should do.

    The lease counts as lost when the row says so, when the database has not answered for its whole length, or when its
    holder, the thread that entered it, has shown no sign of life for too long: it may hang in a call that never returns.
    """

    def __init__(
        self, claim: Held, *, stopping: threading.Event, renew: Callable[..., LeaseState] | None = None
    ) -> None:
        self._claim, self._stopping = claim, stopping
        self._renew: Callable[..., LeaseState] = renew or renew_lease
        self._done = threading.Event()
        self._progress: Mapping[str, Any] | None = None
        self._curve = RunningCurve()
        self._holder: int | None = None
        self._seen = time.monotonic()
        self._listening = ExitStack()
        # In the context of whoever holds it, so that its log lines name the update too; made before the holder's signs of
        # life go to the lease, so that its own are none.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._keep,), name=f"lease-{claim.subject}", daemon=True
        )
        self.lost = False
        self.cancel_requested = False

    def __enter__(self) -> Self:
        self._holder = threading.get_ident()
        self._listening.enter_context(listen_for_life(self._saw_holder))
        self._saw_holder()
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listening.close()
        self._done.set()
        self._thread.join()

    def _saw_holder(self) -> None:
        self._seen = time.monotonic()

    def report(self, progress: Progress) -> None:
        """Takes the progress to be written with the next renewal, and the course of the loss until then with it.

        The course is that of the version's own training, the first; its repeats would not continue it.
        """
        if progress.phase == "training" and progress.loss is not None and progress.repeat == 1:
            self._curve.add(progress.step, progress.loss)
        self._progress = {**asdict(progress), "losses": list(self._curve.points)}
        if progress.checkpoint_step:
            reach("checkpoint_written")

    def watch(self) -> Signal | None:
        """Tells the child to give up (`cancel`), to write a checkpoint and leave (`stop`), or to go on (None)."""
        self._saw_holder()
        if self.lost or self.cancel_requested:
            return "cancel"
        return "stop" if self._stopping.is_set() else None

    def check(self) -> None:
        """Raises `LeaseLost` when the claim no longer holds."""
        if self.lost:
            raise LeaseLost(self._claim.subject)

    def _keep(self) -> None:
        settings = get_settings()
        interval = min(1.0, settings.lease_seconds / 3)
        renewed = time.monotonic()
        while not self._done.wait(interval):
            if time.monotonic() - self._seen > settings.worker_timeout_seconds:
                self._give_up()
                return
            try:
                with session_scope(tenant=self._claim.tenant, role="worker") as session:
                    state = self._renew(
                        session,
                        claim=self._claim,
                        lease_seconds=settings.lease_seconds,
                        progress=self._progress,
                    )
            except SQLAlchemyError as error:
                log.warning("lease_not_renewed", error=type(error).__name__)
                self.lost = time.monotonic() - renewed > settings.lease_seconds
                if self.lost:
                    return  # renewing it later would keep a dead claim alive
                continue
            renewed = time.monotonic()
            self.cancel_requested = state.cancel_requested
            if not state.held:
                self.lost = True
                return

    def _give_up(self) -> None:
        """Lets the lease run out under a holder that hangs; should it ever go on, its fence keeps it from writing."""
        self.lost = True
        holder = self._holder or 0  # set before this thread was started
        frame = sys._current_frames().get(holder)
        log.error(
            "holder_hangs",
            silent_seconds=round(time.monotonic() - self._seen),
            stack="".join(traceback.format_stack(frame)) if frame else None,
        )
        report_hanging(holder)
