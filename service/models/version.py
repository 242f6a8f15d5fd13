"""Versions, what each of them learnt, and the aliases that point at them."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKeyConstraint, Identity, Index
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at

BLEND = "blend"
"""The strategy of a version between another one, its parameter `of`, and that one's parent."""

IMPORT = "import"
"""What stands for the strategy of a version that was trained elsewhere; its parameter `sha256` names the uploaded tar."""


class Version(OwnedByTenant, Base):
    """An immutable adapter with lineage. Number 0 is the untouched base and has no artifact.

    `lineage` lists the version's ancestors from 0 to itself; it never changes, since parents do not.
    """

    __tablename__ = "versions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id"], ["models.tenant_id", "models.id"], ondelete="CASCADE"
        ),
        Index("uq_versions_update", "tenant_id", "update_id", unique=True),
    )

    model_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent: Mapped[int | None]
    lineage: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    update_id: Mapped[str | None]
    strategy: Mapped[str | None]
    parameters: Mapped[dict[str, Any]]
    training: Mapped[dict[str, Any]]
    cut: Mapped[int]
    labels: Mapped[list[Any]]
    artifact_sha256: Mapped[str | None]
    artifact_bytes: Mapped[int | None]
    artifact_removed_at: Mapped[
        datetime | None
    ]  # by the model's retention or an erasure; the row stays as a tombstone
    state_sha256: Mapped[str | None]  # what the strategy left for the next update; dropped by an erasure
    state_bytes: Mapped[int | None]
    statistics: Mapped[dict[str, Any]]  # steps, rows, seconds, losses of the training
    provenance: Mapped[dict[str, Any]]  # base model revision and hash, package versions, code revision
    created_at: Mapped[datetime] = created_at()


class VersionTask(OwnedByTenant, Base):
    """What a version learnt of a task: the visible train rows of the batches in (`after_batch`, `up_to_batch`]."""

    __tablename__ = "version_tasks"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id", "version"],
            ["versions.tenant_id", "versions.model_id", "versions.number"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"], ondelete="CASCADE"),
    )

    model_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[str] = mapped_column(primary_key=True)
    after_batch: Mapped[int]
    up_to_batch: Mapped[int]
    rows: Mapped[int]


class Alias(OwnedByTenant, Base):
    """A name that points at a version; `champion` is what serving follows. `move_id` is its latest history row."""

    __tablename__ = "aliases"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id", "version"],
            ["versions.tenant_id", "versions.model_id", "versions.number"],
            ondelete="CASCADE",
        ),
    )

    model_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    move_id: Mapped[int]
    updated_at: Mapped[datetime] = created_at()


class AliasMove(OwnedByTenant, Base):
    """Who moved which alias from what to what, when and why; append-only.

    `predecessor_id` is the history row a plain rollback returns to: a promotion's predecessor is the row
    before it, a rollback's is the predecessor of the row it returned to. So repeated rollbacks walk back one
    promotion at a time and never bounce.
    """

    __tablename__ = "alias_moves"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id"], ["models.tenant_id", "models.id"], ondelete="CASCADE"
        ),
        Index("ix_alias_moves_model", "tenant_id", "model_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    model_id: Mapped[str]
    alias: Mapped[str]
    kind: Mapped[str]
    from_version: Mapped[int | None]
    to_version: Mapped[int]
    predecessor_id: Mapped[int | None]
    update_id: Mapped[str | None]
    actor: Mapped[str]
    reason: Mapped[str | None]
    at: Mapped[datetime] = created_at()
