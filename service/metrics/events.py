"""Totals over the events of updates: how long phases took, how updates ended, what was tried again.

Events are followed by their id: each is counted once, in the first reading that sees it. So totals cover every stored
event whenever the process was started, and a reading costs what is new, not what there is.
"""

from collections.abc import Sequence
from typing import Any

import psycopg
from prometheus_client import Counter, Histogram

from service.metrics.http import registry
from service.models import UpdateState
from service.updates.states import FINISHED

BATCH = 5000
BATCHES_PER_READING = 40
# Ids are drawn before their transactions commit: this far back, an event may yet appear.
LATE = 1000
SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200, 86_400)

NEW_EVENTS = """
    SELECT e.id, e.type, e.data ? 'attempt', e.data ->> 'code', before.type,
           extract(epoch FROM e.at - before.at)::float8
    FROM (SELECT * FROM update_events WHERE id > %(after)s ORDER BY id LIMIT %(batch)s) e
    LEFT JOIN LATERAL (
        SELECT p.type, p.at FROM update_events p
        WHERE p.tenant_id = e.tenant_id AND p.update_id = e.update_id AND p.id < e.id AND p.type = ANY(%(states)s)
        ORDER BY p.id DESC LIMIT 1
    ) before ON e.type = ANY(%(states)s)
    ORDER BY e.id
"""

phase_seconds = Histogram(
    "palimpsest_update_phase_seconds",
    "Seconds an update spent in a state before it left it",
    ["phase"],
    buckets=SECONDS,
    registry=registry,
)
finished = Counter("palimpsest_updates_finished", "Updates that ended", ["state"], registry=registry)
leases_lost = Counter(
    "palimpsest_leases_lost", "Leases that ran out because no worker renewed them", registry=registry
)
attempts_failed = Counter(
    "palimpsest_update_attempts_failed", "Attempts that failed, by error code", ["code"], registry=registry
)
retries = Counter("palimpsest_update_retries", "Updates put back for another attempt", registry=registry)


class EventFollower:
    """Counts every event once. One thread at a time may read."""

    def __init__(self) -> None:
        self._highest = 0
        self._late: set[int] = set()  # ids already counted among the last `LATE`

    def read(self, connection: psycopg.Connection[Any]) -> None:
        """Counts the events stored since the last reading; a long history takes several."""
        after = max(self._highest - LATE, 0)
        for _ in range(BATCHES_PER_READING):
            rows = connection.execute(
                NEW_EVENTS, {"after": after, "batch": BATCH, "states": [str(state) for state in UpdateState]}
            ).fetchall()
            for row in rows:
                self._take(row)
            if len(rows) < BATCH:
                break
            after = rows[-1][0]
        self._late = {number for number in self._late if number > self._highest - LATE}

    def _take(self, row: Sequence[Any]) -> None:
        number, *content = row
        if number not in self._late:
            self._late.add(number)
            self._highest = max(self._highest, number)
            count(*content)


def count(kind: str, is_failure: bool, code: str | None, phase: str | None, seconds: float | None) -> None:
    """Adds one event to the totals; `phase` is the state that it ended, after `seconds`."""
    if phase is not None and seconds is not None:
        phase_seconds.labels(phase).observe(seconds)
    if kind in FINISHED:
        finished.labels(kind).inc()
    if kind == "lease_expired":
        leases_lost.inc()
    if is_failure:
        attempts_failed.labels(code or "unknown").inc()
        if kind not in FINISHED:
            retries.inc()
