"""What rows have in common that a worker works on beside updates: dials and forecasts."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import OwnedByTenant, created_at


class LeasedState(StrEnum):
    """Where such a row stands."""

    QUEUED = "queued"  # waits for a worker
    SCORING = "scoring"  # a worker holds the lease
    DONE = "done"  # all that was asked for is there
    FAILED = "failed"  # out of attempts, or an error that another attempt cannot mend
    CANCELLED = "cancelled"  # stopped on request; forecasts alone


class LeasedRow(OwnedByTenant):
    """Mixin: a request that a worker holds by a lease; `service.leased_rows` does all that workers do to it.

    The row is the truth, as with updates: `fence` rises on every claim and guards every write of a worker.
    """

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str]
    requested_by: Mapped[str]
    request_id: Mapped[str | None]
    state: Mapped[str]
    fence: Mapped[int] = mapped_column(server_default="0")
    attempts_used: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int]
    worker: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None]  # after a failed attempt: not claimed before
    error: Mapped[dict[str, Any] | None]
    requested_at: Mapped[datetime] = created_at()
    finished_at: Mapped[datetime | None]
