"""Dials: what lies between a version and its parent, and how it scores."""

from datetime import datetime
from typing import Any

from sqlalchemy import Float, ForeignKeyConstraint, Index, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at
from service.models.leased import LeasedRow, LeasedState

DialState = LeasedState  # its points appear one by one while it is `scoring`


class Dial(LeasedRow, Base):
    """A request to score the points ΔW(β) = (1 − β)·parent + β·version; one per version.

    `betas` are the points asked for so far, the ends among them; `gate` is the model's gate at the first request, whose
    confidence every bound is held at; `eval_set_ids` are what the latest attempt scores on.
    """

    __tablename__ = "dials"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id", "version"],
            ["versions.tenant_id", "versions.model_id", "versions.number"],
            ondelete="CASCADE",
        ),
        Index("uq_dials_version", "tenant_id", "model_id", "version", unique=True),
        Index("ix_dials_unfinished", "requested_at", postgresql_where=text("state IN ('queued', 'scoring')")),
    )

    version: Mapped[int]
    betas: Mapped[list[float]] = mapped_column(ARRAY(Float(53)))
    eval_set_ids: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    gate: Mapped[dict[str, Any]]


class DialScore(OwnedByTenant, Base):
    """What one point of a dial answered on one eval set, as in `Score`; insert-only.

    `interval` are bounds on the score; `change` those on the difference to β = 0, of graded scores alone (others are
    compared by their flips). Each bound holds by itself with the confidence of the dial's gate.
    """

    __tablename__ = "dial_scores"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "dial_id"], ["dials.tenant_id", "dials.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["tenant_id", "eval_set_id"], ["eval_sets.tenant_id", "eval_sets.id"], ondelete="CASCADE"
        ),
    )

    dial_id: Mapped[str] = mapped_column(primary_key=True)
    beta: Mapped[float] = mapped_column(Float(53), primary_key=True)
    eval_set_id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    size: Mapped[int]
    score: Mapped[float] = mapped_column(Float(53))
    correct: Mapped[bytes]
    predicted: Mapped[bytes]
    confidence: Mapped[bytes]
    graded: Mapped[bytes | None]
    measures: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    interval: Mapped[list[float]] = mapped_column(ARRAY(Float(53)))
    change: Mapped[list[float] | None] = mapped_column(ARRAY(Float(53)))
    created_at: Mapped[datetime] = created_at()
