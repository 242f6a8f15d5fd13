"""Celery entry: `celery -A workers.app worker --pool=threads --concurrency=1`.

The worker process never imports torch; each update trains in a child of a fork server that was started here,
from the main thread.
"""

import threading

from celery.signals import setup_logging, worker_init, worker_ready, worker_shutting_down

from service.config import get_settings
from service.logs import configure_logging
from service.queue import celery_app
from service.security import warn_of_default_pepper
from service.tracing import configure_tracing
from workers.child import start_forkserver
from workers.housekeeping import sweep_forever
from workers.leaving import leave_when_one_hangs
from workers.tasks import run_updates, stopping

app = celery_app

__all__ = ["app", "run_updates"]


@setup_logging.connect  # type: ignore[untyped-decorator]  # celery ships no types
def on_setup_logging(**_: object) -> None:
    """Keeps Celery from setting up logging of its own."""
    configure_logging()


@worker_init.connect  # type: ignore[untyped-decorator]  # celery ships no types
def on_worker_init(**_: object) -> None:
    """Starts the fork server, so that a child with torch loaded is ready in a blink, and tracing where it is on."""
    start_forkserver(get_settings().torch_threads)
    configure_tracing("palimpsest-worker")
    warn_of_default_pepper()


@worker_ready.connect  # type: ignore[untyped-decorator]  # celery ships no types
def on_worker_ready(**_: object) -> None:
    """Sweeps beside the work, as any number of sweepers may, and leaves when the work hangs."""
    threading.Thread(target=sweep_forever, args=(stopping,), name="sweeper", daemon=True).start()
    threading.Thread(target=leave_when_one_hangs, name="leaver", daemon=True).start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # celery ships no types
def on_worker_shutting_down(**_: object) -> None:
    """Makes the running update write a checkpoint and go back to the queue."""
    stopping.set()
