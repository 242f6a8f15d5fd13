"""The audit: who did what to keys, gates, champions and data, and when."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Identity
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at


class AuditAction(StrEnum):
    """What is audited; the comment says what `target` and `data` hold."""

    KEY_CREATED = "key.created"  # the key; its prefix, name, scopes and expiry
    KEY_ROTATED = "key.rotated"  # the key; how long the old secret stays valid
    KEY_REVOKED = "key.revoked"  # the key; its prefix and name
    GATE_CHANGED = "model.gate_changed"  # the model; the policy before and after
    GUARD_CHANGED = "task.guard_changed"  # the task; its name and whether it is guarded now
    RETENTION_CHANGED = "model.retention_changed"  # the model; the limits before and after
    MODEL_PURGED = "model.purged"  # the model; its name and how much went
    MODEL_ARCHIVED = "model.archived"  # the model; its name
    PROMOTION_FORCED = (
        "champion.forced"  # the model; versions, update, reason: promoted although it did not pass
    )
    CANDIDATE_APPROVED = "champion.approved"  # the model; versions, update, reason
    CHAMPION_ROLLED_BACK = "champion.rolled_back"  # the model; versions, reason
    ALIAS_MOVED = "alias.moved"  # the model; alias, versions, reason
    ADAPTER_IMPORTED = (
        "adapter.imported"  # the update; model, the tar's sha256 and size, tasks and rows it claims
    )
    CANDIDATE_REJECTED = "update.rejected"  # the update; version, reason
    TASK_DELETED = "task.deleted"  # the task; its name and model
    EXAMPLE_DELETED = "example.deleted"  # the task; the internal ids of the deleted rows
    SUBJECT_ERASED = "subject.erased"  # the model; how many rows and which versions, never the subject
    VERSIONS_RETIRED = (
        "versions.retired"  # the model; the erasure and the versions whose adapters were removed
    )
    WEBHOOK_CREATED = "webhook.created"  # the webhook; its host and events, never the address or a secret
    WEBHOOK_CHANGED = "webhook.changed"  # the webhook; its host, events and whether it is enabled now
    WEBHOOK_ROTATED = "webhook.rotated"  # the webhook; how long the old secret goes on signing
    WEBHOOK_DISABLED = "webhook.disabled"  # the webhook; its host and why the service switched it off
    WEBHOOK_DELETED = "webhook.deleted"  # the webhook; its host


class AuditEntry(OwnedByTenant, Base):
    """One audited act; append-only: the service's roles may insert entries and change none.

    `actor` is the name history rows carry, which keys may share; `key_id` is the very key, null where a worker or
    the command line acted. No foreign key leads away from the tenant: an entry outlives what it speaks of.
    """

    __tablename__ = "audit_entries"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    actor: Mapped[str]
    key_id: Mapped[str | None]
    action: Mapped[str]
    target: Mapped[str]
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime] = created_at()
