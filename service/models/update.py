"""Updates, their states, and their events."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKeyConstraint, Identity, Index, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at


class UpdateState(StrEnum):
    """Where an update stands. Active means training or evaluating."""

    QUEUED = "queued"  # waits for a worker, or for an earlier update of its model
    TRAINING = "training"  # a worker holds the lease and trains
    EVALUATING = "evaluating"  # a worker holds the lease and scores
    AWAITING_APPROVAL = "awaiting_approval"  # a version exists; a person decides
    PROMOTED = "promoted"  # the version became champion
    REJECTED = "rejected"  # the gate or a person kept the version from becoming champion
    FAILED = "failed"  # out of attempts, or an error that another attempt cannot mend
    CANCELLED = "cancelled"  # stopped on request


class Update(OwnedByTenant, Base):
    """A request to learn one or more tasks from a parent version.

    The row is the truth; broker messages are hints. `fence` rises on every claim and guards every write of a
    worker. `attempts_used` counts failures only. At most one update of a model is active at a time.
    """

    __tablename__ = "updates"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "model_id"], ["models.tenant_id", "models.id"], ondelete="CASCADE"),
        Index(
            "uq_updates_active", "tenant_id", "model_id", unique=True,
            postgresql_where=text("state IN ('training', 'evaluating')"),
        ),
        Index("ix_updates_queue", "seq", postgresql_where=text("state = 'queued'")),
        Index("ix_updates_model", "tenant_id", "model_id", "seq"),
        Index(
            "ix_updates_unfinished", "state",
            postgresql_where=text("state IN ('queued', 'training', 'evaluating', 'awaiting_approval')"),
        ),
    )  # fmt: skip

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(server_default=text("nextval('row_seq')"))
    model_id: Mapped[str]
    # what was asked
    task_ids: Mapped[list[str]] = mapped_column(ARRAY(Text))
    strategy: Mapped[str]
    parameters: Mapped[dict[str, Any]]
    training: Mapped[dict[str, Any]]
    replay: Mapped[dict[str, Any]] = mapped_column(server_default='{"boost": "none"}')
    parent: Mapped[str]  # "champion" or a version number
    relearn: Mapped[bool]
    promotion: Mapped[str]
    user_metadata: Mapped[dict[str, Any]] = mapped_column("metadata")
    cut: Mapped[int]  # the last ingest batch the update may see
    warnings: Mapped[list[Any]]
    requested_by: Mapped[str]
    request_id: Mapped[str | None]  # of the call that asked for it
    traceparent: Mapped[str | None]  # the span of that call, where tracing was on
    attempt_traceparent: Mapped[str | None]  # the span of the latest attempt
    # where it stands
    state: Mapped[str]
    fence: Mapped[int] = mapped_column(server_default="0")
    attempts_used: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int]
    worker: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None]  # after a failed attempt: not claimed before
    cancel_requested_at: Mapped[datetime | None]
    rescore_requested_at: Mapped[datetime | None]  # held, and the champion moved since it was compared
    progress: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    # what came of it
    parent_version: Mapped[int | None]
    version: Mapped[int | None]
    compared_with: Mapped[int | None]  # the champion the verdict speaks of
    verdict: Mapped[dict[str, Any] | None]
    decided_by: Mapped[str | None]
    created_at: Mapped[datetime] = created_at()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class UpdateEvent(OwnedByTenant, Base):
    """One change in the life of an update; append-only."""

    __tablename__ = "update_events"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "update_id"], ["updates.tenant_id", "updates.id"], ondelete="CASCADE"
        ),
        Index("ix_update_events_update", "tenant_id", "update_id", "id"),
        Index("ix_update_events_id", "id"),  # metrics follow events of every tenant by id
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    update_id: Mapped[str]
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime] = created_at()
