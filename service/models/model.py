"""Models: the named things that are continually updated."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at


class Model(OwnedByTenant, Base):
    """A continually updated model: base checkpoint, task type, adapter shape, replay budget, gate policy.

    `last_batch` and `last_version` are counters taken under the row's lock; both are gapless.
    """

    __tablename__ = "models"
    __table_args__ = (Index("uq_models_name", "tenant_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(server_default=text("nextval('row_seq')"))
    name: Mapped[str]
    base_model: Mapped[str]
    task_type: Mapped[str]
    adapter: Mapped[dict[str, Any]]
    replay: Mapped[dict[str, Any]]
    gate: Mapped[dict[str, Any]]
    retention: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    user_metadata: Mapped[dict[str, Any]] = mapped_column("metadata")
    buffer_seed: Mapped[int]
    last_batch: Mapped[int] = mapped_column(server_default="0")
    last_version: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = created_at()
    archived_at: Mapped[datetime | None]

    @property
    def is_graded(self) -> bool:
        """Whether scores are mean log-likelihoods, which the untouched base has too, instead of accuracies."""
        return self.task_type == "causal-lm"
