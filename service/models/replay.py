"""Replay admissions: what each version gave to the buffers of its descendants."""

from sqlalchemy import BigInteger, Float, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant


class ReplayEntry(OwnedByTenant, Base):
    """An example that a version learnt, with its stratum and priority (lowest first) in every buffer it may enter."""

    __tablename__ = "replay_entries"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id", "version"],
            ["versions.tenant_id", "versions.model_id", "versions.number"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "example_id"], ["examples.tenant_id", "examples.id"], ondelete="CASCADE"
        ),
        Index("ix_replay_entries_example", "tenant_id", "example_id"),
    )

    model_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    stratum: Mapped[str] = mapped_column(primary_key=True)
    priority: Mapped[float] = mapped_column(Float(53), primary_key=True)
    example_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
