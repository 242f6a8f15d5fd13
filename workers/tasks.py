"""Celery tasks: a few lines each."""

import threading

from service.config import get_settings
from service.db import EVERY_TENANT, session_scope
from service.failpoints import reach
from service.queue import RUN_UPDATES, celery_app
from service.updates.leases import claim_next
from workers.identity import worker_name
from workers.pipeline import run_update

stopping = threading.Event()


@celery_app.task(name=RUN_UPDATES, ignore_result=True)  # type: ignore[untyped-decorator]  # celery ships no types
def run_updates() -> None:
    """Claims and runs updates until none is left or the worker stops. Running it twice does no harm."""
    while not stopping.is_set():
        with session_scope(tenant=EVERY_TENANT, role="worker") as session:
            claim = claim_next(session, worker=worker_name(), lease_seconds=get_settings().lease_seconds)
            if claim is not None:
                reach("before_claim")
        if claim is None:
            return
        run_update(claim, stopping=stopping)
