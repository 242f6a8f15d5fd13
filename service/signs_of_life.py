"""Signs of life: how long work, such as copying an artifact, tells whoever watches over it that it goes on.

What does the work need not know who watches, or whether anyone does. A lease listens for the worker that holds it
(`workers/lease.py`) and gives up a holder that has shown none for too long.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

TICK_SECONDS = 0.5

_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


def show_life() -> None:
    """Says that the work of this thread goes on; costs next to nothing, and nothing happens where nobody listens."""
    if (listener := _listener.get()) is not None:
        listener()


@contextmanager
def show_life_meanwhile() -> Iterator[None]:
    """Shows signs of life for as long as the block runs: for calls of libraries that may take long and end by themselves."""
    listener, over = _listener.get(), threading.Event()

    def tick() -> None:
        while listener is not None and not over.wait(TICK_SECONDS):
            listener()

    thread = threading.Thread(target=tick, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def listen_for_life(listener: Callable[[], None]) -> Iterator[None]:
    """Calls `listener` at every sign of life that this thread shows while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
