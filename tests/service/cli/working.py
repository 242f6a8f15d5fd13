"""A worker beside the commands, in a thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def working(*run_next: Callable[[], bool]) -> Iterator[None]:
    """Works off whatever these find while the context lasts; each does one thing and says whether there was any."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            if not any(run() for run in run_next):
                over.wait(0.05)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
