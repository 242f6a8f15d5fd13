"""Sweeps: expired leases, hints for queued updates, retention, orphaned artifacts and work folders; and webhooks.

`python -m workers.housekeeping` sweeps as a process of its own; every worker sweeps too.
"""

import shutil
import signal
import threading
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from service.artifacts import ArtifactStore, get_store
from service.config import get_settings
from service.db import EVERY_TENANT, session_scope
from service.dials.leases import DIALS
from service.errors import NotFound
from service.forecasts.leases import FORECASTS
from service.logs import configure_logging
from service.models import Update, UpdateState
from service.queue import QUEUE, nudge_workers
from service.registry.disposal import artifacts_in_use, remove_unused
from service.security import forget_ended_sessions, warn_of_default_pepper
from service.storage.answers import delete_old_answers
from service.storage.retention import (
    delete_old_events,
    delete_old_examples,
    models_with_retention,
    remove_artifacts,
)
from service.tracing import configure_tracing
from service.updates.leases import sweep_expired, work_is_waiting
from service.updates.states import FINISHED
from service.webhooks.leases import delete_old_deliveries
from workers.webhooks import deliver_forever
from workers.workspace import remove_attempts, work_root

log = get_logger(__name__)
MAX_WAITING_HINTS = 20  # more of them tell the workers nothing new
STORE_SWEEP_SECONDS = 600.0
ORPHAN_AGE_SECONDS = 3600.0
RETENTION_BATCH = 5000
RETENTION_BATCHES = 40


def sweep_forever(stopping: threading.Event) -> None:
    """Sweeps every few seconds until told to stop; a failing database or broker is waited out.

    What may take minutes has a thread of its own: nothing delays the return of an expired lease. So have webhooks.
    """
    webhooks = threading.Thread(target=deliver_forever, args=(stopping,), name="webhooks", daemon=True)
    webhooks.start()
    seldom = threading.Thread(
        target=_sweep_every, args=(STORE_SWEEP_SECONDS, sweep_seldom, stopping), name="seldom", daemon=True
    )
    seldom.start()
    _sweep_every(get_settings().sweep_seconds, sweep_updates, stopping)
    webhooks.join()  # a few seconds at most


def sweep_seldom() -> None:
    """Applies retention and removes what is over and what nothing refers to."""
    sweep_retention()
    sweep_deliveries()
    sweep_ended_sessions()
    sweep_answers()
    sweep_store()
    sweep_work_folders()


def _sweep_every(seconds: float, sweep: Callable[[], object], stopping: threading.Event) -> None:
    pause = get_settings().sweep_seconds  # the first comes soon: a worker may not live as long as `seconds`
    while not stopping.wait(pause):
        pause = seconds
        try:
            sweep()
        except (SQLAlchemyError, RedisError, OSError) as error:
            log.warning(
                "sweep_failed",
                error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            )
        except Exception:  # a mistake in one sweep must not be the end of all that would come
            log.exception("sweep_failed")


def sweep_updates() -> list[str]:
    """Takes back expired leases and hints at waiting work; returns the ids of the updates taken back."""
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        expired = sweep_expired(session)
        expired_rows = [*DIALS.sweep(session), *FORECASTS.sweep(session)]
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        waiting = work_is_waiting(session) or DIALS.waiting(session) or FORECASTS.waiting(session)
    for update_id in expired:
        log.warning("lease_expired", update=update_id)
    for row_id in expired_rows:
        log.warning("lease_expired", row=row_id)
    if waiting and _hints_waiting() < MAX_WAITING_HINTS:
        nudge_workers()
    return expired


def _hints_waiting() -> int:
    with Redis.from_url(get_settings().redis_url, socket_timeout=2, socket_connect_timeout=2) as redis:
        length = redis.llen(QUEUE)
    return length if isinstance(length, int) else 0


def sweep_store() -> int:
    """Deletes artifacts that neither a version nor a waiting import refers to and that are older than an hour; returns how many.

    Half-written ones of that age go too: a writer was killed.
    """
    store = get_store()
    if partials := store.delete_partials(older_than_seconds=ORPHAN_AGE_SECONDS):
        log.info("partials_deleted", count=partials)
    old = _old_artifacts(store)
    if not old:
        return 0
    with session_scope(role="worker") as session:
        kept = artifacts_in_use(session, old)
    deleted = 0
    for sha256 in set(old) - kept:
        # Looked at again: one that was stored anew in between is about to be referred to.
        if remove_unused(sha256, role="worker", older_than_seconds=ORPHAN_AGE_SECONDS):
            deleted += 1
            log.info("orphan_deleted", sha256=sha256)
    return deleted


def sweep_retention() -> None:
    """Removes what models no longer keep; a model that cannot be swept does not stop the others."""
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        found = models_with_retention(session)
    for tenant, model in found:
        try:
            _sweep_model(tenant, model)
        except NotFound:
            continue  # purged meanwhile
        except SQLAlchemyError as error:
            log.warning("retention_failed", tenant=tenant, model=model, error=str(error).splitlines()[0])


def _sweep_model(tenant: str, model: str) -> None:
    with session_scope(tenant=tenant, role="worker") as session:
        versions = remove_artifacts(session, model=model)
    removed = {
        "examples": _in_batches(tenant, delete_old_examples, model=model),
        "events": _in_batches(tenant, delete_old_events, model=model),
    }
    if versions or any(removed.values()):
        log.info("retention_applied", tenant=tenant, model=model, artifacts_of=versions, **removed)


def _in_batches(tenant: str, delete: Callable[..., int], **which: Any) -> int:
    """Deletes batch after batch, each in a transaction of its own; what is left over waits for the next sweep."""
    total = 0
    for _ in range(RETENTION_BATCHES):
        with session_scope(tenant=tenant, role="worker") as session:
            deleted = delete(session, limit=RETENTION_BATCH, **which)
        total += deleted
        if deleted < RETENTION_BATCH:
            break
    return total


def sweep_deliveries() -> int:
    """Deletes what webhooks were told of longer ago than is kept; returns how many deliveries."""
    return _in_batches(EVERY_TENANT, delete_old_deliveries, days=get_settings().webhook_log_days)


def sweep_answers() -> int:
    """Deletes answers to requests with an Idempotency-Key that are older than repeats are expected; returns how many."""
    days = get_settings().idempotency_days
    return _in_batches(EVERY_TENANT, delete_old_answers, days=days)


def sweep_ended_sessions() -> int:
    """Forgets signed-out sessions of the pages once they would be over by themselves; returns how many."""
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        return forget_ended_sessions(session)


def _old_artifacts(store: ArtifactStore) -> list[str]:
    return [sha256 for sha256, age in store.hashes() if age > ORPHAN_AGE_SECONDS]


def sweep_work_folders() -> int:
    """Deletes the scratch folders of finished updates, dials and forecasts on this machine; returns how many.

    Of an update that waits for approval the folders of its attempts go: the next one reads its version from the store.
    """
    folders = {
        folder.name: folder for kind in ("upd_*", "dia_*", "fct_*") for folder in work_root().glob(kind)
    }
    if not folders:
        return 0
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        updates = session.execute(
            select(Update.id, Update.state, Update.fence).where(
                Update.id.in_(folders), Update.state.not_in(FINISHED)
            )
        ).all()
        unfinished = {
            *(update.id for update in updates),
            *DIALS.unfinished(session, ids=folders),
            *FORECASTS.unfinished(session, ids=folders),
        }
    finished = [folder for name, folder in folders.items() if name not in unfinished]
    for folder in finished:
        shutil.rmtree(folder, ignore_errors=True)
    # Up to the fence that was read: an attempt that begins meanwhile has a later one.
    held = [
        remove_attempts(folders[update.id], up_to=update.fence)
        for update in updates
        if update.state == UpdateState.AWAITING_APPROVAL
    ]
    return len(finished) + sum(map(bool, held))


def main() -> None:
    """Sweeps until SIGTERM or Ctrl-C."""
    configure_logging()
    configure_tracing("palimpsest-sweeper")
    warn_of_default_pepper()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    log.info("sweeper_started", every_seconds=get_settings().sweep_seconds)
    sweep_forever(stopping)


if __name__ == "__main__":
    main()
