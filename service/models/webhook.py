"""Webhooks, what they sign with, and what was or is to be sent to them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKeyConstraint, Index, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at


class EventType(StrEnum):
    """What a webhook can be told of."""

    UPDATE_HELD = "update.held"  # a candidate waits for a person, with a new verdict
    UPDATE_PROMOTED = "update.promoted"
    UPDATE_REJECTED = "update.rejected"
    UPDATE_FAILED = "update.failed"
    UPDATE_CANCELLED = "update.cancelled"
    CHAMPION_ROLLED_BACK = "champion.rolled_back"
    CHAMPION_ASSIGNED = "champion.assigned"  # a person pointed the alias at a version


TEST_EVENT = "webhook.test"  # sent on request, whatever the webhook is to be told of


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"  # to be sent, or to be sent again
    DELIVERED = "delivered"  # answered with 2xx
    FAILED = "failed"  # given up; a replay makes it pending again


class Webhook(OwnedByTenant, Base):
    """An address that is told of a tenant's events. What it signs with lies in a table of its own."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(server_default=text("nextval('row_seq')"))
    url: Mapped[str]
    events: Mapped[list[str] | None] = mapped_column(ARRAY(Text))  # null: all
    description: Mapped[str | None]
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    disabled_reason: Mapped[str | None]  # where the service switched it off
    failing_since: Mapped[datetime | None]  # the first attempt that failed since one succeeded
    rotated_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = created_at()


class WebhookSecret(OwnedByTenant, Base):
    """A secret that a webhook's messages are signed with, until `expires_at`.

    `sealed` is the secret under a key derived from the pepper. Only workers may read it; the API's role can only write it.
    """

    __tablename__ = "webhook_secrets"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "webhook_id"], ["webhooks.tenant_id", "webhooks.id"], ondelete="CASCADE"
        ),
        Index("ix_webhook_secrets_webhook", "tenant_id", "webhook_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(server_default=text("nextval('row_seq')"))
    webhook_id: Mapped[str]
    sealed: Mapped[bytes] = mapped_column(deferred=True, deferred_raiseload=True)
    expires_at: Mapped[datetime | None]  # null: the present one
    created_at: Mapped[datetime] = created_at()


class WebhookDelivery(OwnedByTenant, Base):
    """One event for one webhook; inserted by the transaction of what it tells of.

    `message_id` is the event's, the same for every webhook and every attempt: receivers know repeats by it. Whoever sends
    holds the row by `fence` and lease, as workers hold updates. No foreign key leads to the model: inserting would lock
    its row after the update's, against the order of locks. A purge deletes by `model_id`.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "webhook_id"], ["webhooks.tenant_id", "webhooks.id"], ondelete="CASCADE"
        ),
        Index("ix_webhook_deliveries_log", "tenant_id", "webhook_id", "seq"),
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
        Index(
            "ix_webhook_deliveries_held", "tenant_id", "webhook_id",
            postgresql_where=text("lease_expires_at IS NOT NULL"),
        ),
        Index(
            "ix_webhook_deliveries_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")
        ),
    )  # fmt: skip

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(server_default=text("nextval('row_seq')"))
    webhook_id: Mapped[str]
    message_id: Mapped[str]
    type: Mapped[str]
    model_id: Mapped[str | None]
    data: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default=text("'pending'"))
    attempts: Mapped[int] = mapped_column(server_default="0")
    tries: Mapped[int] = mapped_column(server_default="0")  # attempts since it was made or replayed
    log: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))  # the latest attempts, oldest first
    fence: Mapped[int] = mapped_column(server_default="0")
    lease_expires_at: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None] = mapped_column(server_default=text("now()"))
    created_at: Mapped[datetime] = created_at()
    finished_at: Mapped[datetime | None]
