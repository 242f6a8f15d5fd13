"""What the database says at the moment of a scrape, within a bounded time.

A hung server answers neither queries nor cancellations, so the reading runs in a thread of its own on a connection
of its own; the scrape waits for it a while and then takes what is there.
"""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry, Counter, Gauge
from structlog import get_logger

from service.config import get_settings
from service.metrics.events import EventFollower
from service.metrics.http import registry
from service.models import DeliveryState, UpdateState

log = get_logger(__name__)
Connection = psycopg.Connection[Any]

scrape_errors = Counter(
    "palimpsest_scrape_errors", "Parts of scrapes that could not be read", ["part"], registry=registry
)

UPDATES = "SELECT state, count(*) FROM updates GROUP BY state"
OLDEST = """
    SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 FROM updates WHERE state = 'queued'
"""
GPU_MEMORY = """
    SELECT coalesce(sum((progress ->> 'gpu_memory_bytes')::float8), 0)
    FROM updates WHERE state IN ('training', 'evaluating')
"""
ARTIFACTS = """
    SELECT coalesce(sum(bytes), 0)::float8 FROM (
        SELECT DISTINCT artifact_sha256, artifact_bytes FROM versions WHERE artifact_sha256 IS NOT NULL
        UNION SELECT DISTINCT state_sha256, state_bytes FROM versions WHERE state_sha256 IS NOT NULL
    ) stored (sha256, bytes)
"""

DELIVERIES = "SELECT state, count(*) FROM webhook_deliveries GROUP BY state"
DELIVERY_DUE = """
    SELECT coalesce(extract(epoch FROM now() - min(next_attempt_at)), 0)::float8 FROM webhook_deliveries
    WHERE state = 'pending' AND next_attempt_at <= now()
"""


def read_updates(connection: Connection, scrape: CollectorRegistry) -> None:
    """Updates by state, how long the queue is, and the GPU memory of the active ones."""
    counts = dict.fromkeys(map(str, UpdateState), 0) | dict(connection.execute(UPDATES).fetchall())
    oldest, gpu_memory = _number(connection, OLDEST), _number(connection, GPU_MEMORY)
    gauge = Gauge("palimpsest_updates", "Stored updates by state", ["state"], registry=scrape)
    for state, number in counts.items():
        gauge.labels(state).set(number)
    _gauge(scrape, "palimpsest_queue_depth", "Updates that wait for a worker", counts[UpdateState.QUEUED])
    _gauge(
        scrape, "palimpsest_queue_oldest_age_seconds", "How long the oldest queued update has waited", oldest
    )
    _gauge(
        scrape,
        "palimpsest_gpu_memory_bytes",
        "GPU memory that training processes hold, as last reported",
        gpu_memory,
    )


def read_storage(connection: Connection, scrape: CollectorRegistry) -> None:
    """Models, versions, what the buffers are drawn from, and the artifacts' bytes."""
    for name, description, query in (
        ("models", "Models, archived ones included", "SELECT count(*) FROM models"),
        ("versions", "Trained versions", "SELECT count(*) FROM versions WHERE number > 0"),
        ("artifact_bytes", "Bytes of the artifacts that versions refer to", ARTIFACTS),
        # Not counted in replay_entries, which may hold hundreds of millions of rows.
        ("replay_rows", "Examples admitted to replay when their versions were made, over all versions",
         "SELECT coalesce(sum(rows), 0)::float8 FROM version_tasks"),
    ):  # fmt: skip
        _gauge(scrape, f"palimpsest_{name}", description, _number(connection, query))


def read_webhooks(connection: Connection, scrape: CollectorRegistry) -> None:
    """Deliveries to webhooks by what came of them, and how long the most overdue one has waited."""
    counts = dict.fromkeys(map(str, DeliveryState), 0) | dict(connection.execute(DELIVERIES).fetchall())
    overdue = _number(connection, DELIVERY_DUE)
    gauge = Gauge(
        "palimpsest_webhook_deliveries", "Stored deliveries to webhooks by state", ["state"], registry=scrape
    )
    for state, number in counts.items():
        gauge.labels(state).set(number)
    _gauge(
        scrape, "palimpsest_webhook_overdue_seconds", "How long the most overdue delivery has waited", overdue
    )


class DatabaseReader:
    """Reads the database for scrapes, one reading at a time."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._events = EventFollower()

    def read(self, *, timeout_seconds: float) -> CollectorRegistry:
        """Returns gauges of the present moment; without the parts that failed or did not come in time."""
        scrape = CollectorRegistry()
        if not self._busy.acquire(blocking=False):
            scrape_errors.labels("database").inc()  # an earlier reading hangs yet
            return scrape
        done = threading.Event()
        threading.Thread(target=self._run, args=(scrape, done), name="scrape", daemon=True).start()
        if not done.wait(timeout_seconds):
            scrape_errors.labels("database").inc()
        return scrape

    def _run(self, scrape: CollectorRegistry, done: threading.Event) -> None:
        try:
            with _connect() as connection:
                self._read_part("updates", connection, lambda: read_updates(connection, scrape))
                self._read_part("storage", connection, lambda: read_storage(connection, scrape))
                self._read_part("webhooks", connection, lambda: read_webhooks(connection, scrape))
                self._read_part("events", connection, lambda: self._events.read(connection))
        except psycopg.Error as error:
            _failed("database", error)
        finally:
            self._busy.release()
            done.set()

    def _read_part(self, part: str, connection: Connection, read: Callable[[], None]) -> None:
        try:
            with connection.transaction():
                connection.execute(
                    "SELECT set_config('role', 'palimpsest_worker', true), set_config('palimpsest.tenant', '*', true)"
                )
                read()
        except psycopg.Error as error:
            if connection.broken:
                raise
            _failed(part, error)


def _connect() -> Connection:
    settings = get_settings()
    milliseconds = int(settings.metrics_timeout_seconds * 1000)
    return psycopg.connect(
        settings.database_url.replace("postgresql+psycopg://", "postgresql://"),
        connect_timeout=max(int(settings.metrics_timeout_seconds), 2),  # libpq takes 1 for 2
        options=f"-c statement_timeout={milliseconds} -c default_transaction_read_only=on",
        application_name="palimpsest-metrics",
        # A server that vanished without a word would otherwise hold the reading for hours.
        keepalives_idle=5,
        keepalives_interval=5,
        keepalives_count=3,
    )


def _failed(part: str, error: psycopg.Error) -> None:
    scrape_errors.labels(part).inc()
    log.warning("scrape_failed", part=part, error=f"{type(error).__name__}: {error}".splitlines()[0])


def _number(connection: Connection, query: str) -> float:
    row = connection.execute(query).fetchone()
    return float(row[0]) if row else 0.0


def _gauge(scrape: CollectorRegistry, name: str, description: str, value: float) -> None:
    Gauge(name, description, registry=scrape).set(value)
