"""Eval sets and scores."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at


class EvalSet(OwnedByTenant, Base):
    """The eval examples of a task at some cut, in the order outcomes are stored in. A set that grew is a new set."""

    __tablename__ = "eval_sets"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"], ondelete="CASCADE"),
        Index("uq_eval_sets_digest", "tenant_id", "task_id", "digest", unique=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str]
    task_id: Mapped[str]
    digest: Mapped[bytes]
    size: Mapped[int]
    example_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    created_at: Mapped[datetime] = created_at()


class Answered:
    """What an adapter answered on one eval set: per-example outcomes (packed) and their aggregate.

    `correct` is a bit per example, `predicted` an integer per example into the adapter's labels, `confidence`
    a half-precision float per example, `graded` (of language models) a float per example; all in the eval set's
    order. `score` is the mean of `graded` where there is one, else the accuracy.
    """

    task_id: Mapped[str]
    size: Mapped[int]
    score: Mapped[float]
    correct: Mapped[bytes]
    predicted: Mapped[bytes]
    confidence: Mapped[bytes]
    graded: Mapped[bytes | None]


class Score(Answered, OwnedByTenant, Base):
    """The result of one version on one eval set. `measures` holds further aggregates by name, such as perplexity."""

    __tablename__ = "scores"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id", "version"],
            ["versions.tenant_id", "versions.model_id", "versions.number"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "eval_set_id"], ["eval_sets.tenant_id", "eval_sets.id"], ondelete="CASCADE"
        ),
    )

    model_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    eval_set_id: Mapped[str] = mapped_column(primary_key=True)
    measures: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    created_at: Mapped[datetime] = created_at()


class RepeatScore(Answered, OwnedByTenant, Base):
    """The result of a further seed of an update on one eval set; its adapter is thrown away.

    `basis` is a hash of what it was trained on and from: an attempt that trains on something else measures anew.
    """

    __tablename__ = "repeat_scores"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "update_id"], ["updates.tenant_id", "updates.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["tenant_id", "eval_set_id"], ["eval_sets.tenant_id", "eval_sets.id"], ondelete="CASCADE"
        ),
        Index("ix_repeat_scores_eval_set", "tenant_id", "eval_set_id"),
    )

    update_id: Mapped[str] = mapped_column(primary_key=True)
    seed: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    eval_set_id: Mapped[str] = mapped_column(primary_key=True)
    basis: Mapped[str]
    created_at: Mapped[datetime] = created_at()
