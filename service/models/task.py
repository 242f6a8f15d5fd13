"""Tasks: named bodies of data a model should handle."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at


class Task(OwnedByTenant, Base):
    """A named body of data with a train and an eval split.

    A guarded task is evaluated at every update and must not regress, learnt or not.
    A deleted task keeps its row, so that old reports can still name it; its name is free again.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "model_id"], ["models.tenant_id", "models.id"], ondelete="CASCADE"),
        Index(
            "uq_tasks_name", "tenant_id", "model_id", "name", unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
    )  # fmt: skip

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(server_default=text("nextval('row_seq')"))
    model_id: Mapped[str]
    name: Mapped[str]
    user_metadata: Mapped[dict[str, Any]] = mapped_column("metadata")
    created_at: Mapped[datetime] = created_at()
    guarded: Mapped[bool] = mapped_column(server_default=text("false"))
    deleted_at: Mapped[datetime | None]
