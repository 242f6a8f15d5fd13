"""Celery tasks: a few lines each."""

import threading
from collections.abc import Callable
from typing import Any

from service.config import get_settings
from service.db import EVERY_TENANT, session_scope
from service.dials.leases import DIALS
from service.failpoints import reach
from service.forecasts.leases import FORECASTS
from service.leased_rows import LeasedRows, RowClaim
from service.queue import RUN_UPDATES, celery_app
from service.updates.leases import claim_next
from workers.dials import run_dial
from workers.forecasts import run_forecast
from workers.identity import worker_name
from workers.leaving import at_work
from workers.pipeline import run_update

stopping = threading.Event()


@celery_app.task(name=RUN_UPDATES, ignore_result=True)  # type: ignore[untyped-decorator]  # celery ships no types
def run_updates() -> None:
    """Works off updates, dials and forecasts in turn until none is left or the worker stops. Running it twice does no harm."""
    with at_work():
        while not stopping.is_set():
            if not any([run_next_update(), run_next_dial(), run_next_forecast()]):
                return


def run_next_update() -> bool:
    """Claims and runs one update; says whether there was any."""
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        claim = claim_next(session, worker=worker_name(), lease_seconds=get_settings().lease_seconds)
        if claim is not None:
            reach("before_claim")
    if claim is not None:
        run_update(claim, stopping=stopping)
    return claim is not None


def run_next_dial() -> bool:
    """Claims and scores one dial; says whether there was any."""
    return _run_next(DIALS, run_dial)


def run_next_forecast() -> bool:
    """Claims and makes one forecast; says whether there was any."""
    return _run_next(FORECASTS, run_forecast)


def _run_next(rows: LeasedRows[Any], run: Callable[..., None]) -> bool:
    if stopping.is_set():
        return False
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        claim: RowClaim | None = rows.claim(
            session, worker=worker_name(), lease_seconds=get_settings().lease_seconds
        )
    if claim is not None:
        run(claim, stopping=stopping)
    return claim is not None
