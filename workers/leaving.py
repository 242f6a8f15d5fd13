"""A worker with a thread that hangs leaves: such a thread cannot be ended, takes no other work, and may hold a training child.

Whoever keeps workers running (compose, a service manager, the embedded stack) starts a new one in its place.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from structlog import get_logger

PATIENCE_SECONDS = 60.0
"""How long the other threads may take to give their work back."""
POLL_SECONDS = 0.1

log = get_logger(__name__)

_at_work: set[int] = set()
_hanging: set[int] = set()
_somebody_hangs = threading.Event()


@contextmanager
def at_work() -> Iterator[None]:
    """Says that this thread works while the block runs."""
    _at_work.add(threading.get_ident())
    try:
        yield
    finally:
        _at_work.discard(threading.get_ident())


def report_hanging(thread: int) -> None:
    """Says of a thread, by its identifier, that it was given up."""
    _hanging.add(thread)
    _somebody_hangs.set()


def leave_when_one_hangs() -> None:
    """Waits until a thread was given up, lets the others give their work back as at SIGTERM, and ends the process."""
    _somebody_hangs.wait()
    os.kill(os.getpid(), signal.SIGTERM)  # by itself the process would wait for the thread that hangs
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _at_work - _hanging and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    log.error("worker_leaves", threads_hanging=len(_hanging))
    os._exit(os.EX_SOFTWARE)
