"""The Celery app and what is sent through it: hints that there is work, never the work itself."""

from celery import Celery
from sqlalchemy.orm import Session
from structlog import get_logger

from service.config import get_settings
from service.db import after_commit

log = get_logger(__name__)

RUN_UPDATES = "palimpsest.run_updates"  # claim and run queued updates until none is left
QUEUE = "updates"
HINT_TIMEOUT_SECONDS = 1.0


def make_celery(broker_url: str) -> Celery:
    """Returns the Celery app: ids only, early acknowledgement (the lease lies in Postgres), no results."""
    app = Celery("palimpsest", broker=broker_url, set_as_current=False)  # a process has two of them
    app.conf.update(
        task_default_queue=QUEUE,
        task_acks_late=False,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_connect_timeout": 2,
            "socket_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        task_serializer="json",
        accept_content=["json"],
    )
    return app


def make_sender(broker_url: str) -> Celery:
    """Returns an app to send hints with, which tries once and soon gives up: a request waits for it."""
    app = make_celery(broker_url)
    app.conf.broker_transport_options |= {
        "socket_connect_timeout": HINT_TIMEOUT_SECONDS,
        "socket_timeout": HINT_TIMEOUT_SECONDS,
        "max_retries": 0,
    }
    return app


celery_app = make_celery(get_settings().redis_url)
celery_app.set_current()  # the worker's
sender = make_sender(get_settings().redis_url)


def nudge_workers() -> None:
    """Tells the workers that an update may be waiting.

    A broker that does not answer within a second is logged, no more: the sweeper sends the hint again while updates
    are queued.
    """
    try:
        # Without an expiry: that is a time by the sender's clock, and a worker whose clock is ahead would drop them all.
        sender.send_task(RUN_UPDATES, retry=False)
    except (
        Exception
    ) as error:  # what the hint speaks of is committed: nothing here may turn its answer into an error
        log.warning("nudge_not_sent", error=f"{type(error).__name__}: {error}")


def nudge_after_commit(session: Session) -> None:
    """Nudges the workers once the session's transaction has committed."""
    after_commit(session, nudge_workers)
