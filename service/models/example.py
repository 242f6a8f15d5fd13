"""Examples: the rows of tasks."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKeyConstraint, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at

LIVE = text("superseded_batch IS NULL")


class Example(OwnedByTenant, Base):
    """One row of a task.

    An example is visible at a cut `c` when `batch <= c` and it was not superseded by then
    (`superseded_batch` is null or `> c`). A correction (same `external_id`, new content) supersedes the
    old row and adds a new one, so that stored outcomes keep pointing at the text that was scored. Erasure
    deletes the row itself.
    """

    __tablename__ = "examples"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["tenant_id", "model_id"], ["models.tenant_id", "models.id"], ondelete="CASCADE"),
        CheckConstraint("split IN ('train', 'eval')", name="split"),
        Index("uq_examples_content", "tenant_id", "task_id", "content_hash", unique=True, postgresql_where=LIVE),
        Index(
            "uq_examples_external_id", "tenant_id", "task_id", "external_id", unique=True,
            postgresql_where=text("superseded_batch IS NULL AND external_id IS NOT NULL"),
        ),
        Index("ix_examples_text", "tenant_id", "model_id", "text_hash"),
        Index("ix_examples_batch", "tenant_id", "task_id", "split", "batch"),
        Index("ix_examples_label", "tenant_id", "task_id", "split", "label", postgresql_where=LIVE),
        Index(
            "ix_examples_subject", "tenant_id", "model_id", "subject",
            postgresql_where=text("subject IS NOT NULL"),
        ),
        Index(
            "ix_examples_superseded", "tenant_id", "id", postgresql_include=["superseded_batch"],
            postgresql_where=text("superseded_batch IS NOT NULL"),
        ),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    model_id: Mapped[str]
    task_id: Mapped[str]
    external_id: Mapped[str | None]
    split: Mapped[str]
    content: Mapped[dict[str, Any]]
    label: Mapped[str | None]
    content_hash: Mapped[bytes]
    text_hash: Mapped[bytes]
    weight: Mapped[float] = mapped_column(server_default="1")
    subject: Mapped[str | None]
    user_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    batch: Mapped[int]
    superseded_batch: Mapped[int | None]
    created_at: Mapped[datetime] = created_at()
