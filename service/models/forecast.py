"""Forecasts: what an update would cost the tasks learnt before it, told from its first steps."""

from datetime import datetime
from typing import Any

from sqlalchemy import Float, ForeignKeyConstraint, Index, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at
from service.models.leased import LeasedRow


class Forecast(LeasedRow, Base):
    """A request to forecast an update that nobody has asked for yet; its settings are those the update would have.

    `cut` and `parent_version` are pinned at the request. `probe` is what its own probe measured, as soon as that is
    known; `result` the answer, once it is done.
    """

    __tablename__ = "forecasts"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id"], ["models.tenant_id", "models.id"], ondelete="CASCADE"
        ),
        Index("ix_forecasts_model", "tenant_id", "model_id", "seq"),
        Index(
            "ix_forecasts_unfinished",
            "requested_at",
            postgresql_where=text("state IN ('queued', 'scoring')"),
        ),
    )

    seq: Mapped[int] = mapped_column(server_default=text("nextval('row_seq')"))
    task_ids: Mapped[list[str]] = mapped_column(ARRAY(Text))
    strategy: Mapped[str]
    parameters: Mapped[dict[str, Any]]
    training: Mapped[dict[str, Any]]
    replay: Mapped[dict[str, Any]]
    relearn: Mapped[bool]
    parent_version: Mapped[int]
    cut: Mapped[int]
    share: Mapped[float] = mapped_column(Float(53))  # of the steps that a probe takes
    level: Mapped[float] = mapped_column(Float(53))  # of the intervals
    gate: Mapped[dict[str, Any]]
    warnings: Mapped[list[Any]]
    progress: Mapped[dict[str, Any] | None]
    probe: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]


class ForecastProbe(OwnedByTenant, Base):
    """What the probe of a past update measured, made once for all forecasts of its model; insert-only."""

    __tablename__ = "forecast_probes"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "update_id"], ["updates.tenant_id", "updates.id"], ondelete="CASCADE"
        ),
    )

    update_id: Mapped[str] = mapped_column(primary_key=True)
    share: Mapped[float] = mapped_column(Float(53), primary_key=True)
    probe: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = created_at()
