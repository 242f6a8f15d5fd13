"""Signs of life: how long work, such as copying an artifact, tells whoever watches over it that it goes on.

What does the work need not know who watches, or whether anyone does. A lease listens for the worker that holds it
(`workers/lease.py`) and gives up a holder that has shown none for too long.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


def show_life() -> None:
    """Says that the work of this thread goes on; costs next to nothing, and nothing happens where nobody listens."""
    if (listener := _listener.get()) is not None:
        listener()


def bound_to_this_thread() -> Callable[[], None]:
    """Returns what shows this thread's signs of life from other threads, which work on its behalf."""
    return _listener.get() or (lambda: None)


@contextmanager
def listen_for_life(listener: Callable[[], None]) -> Iterator[None]:
    """Calls `listener` at every sign of life that this thread shows while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
