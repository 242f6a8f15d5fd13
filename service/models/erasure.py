"""Erasures of data subjects: what went, what had learnt from it, and how the model was cleaned of it."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at


class Erasure(OwnedByTenant, Base):
    """One erasure. It knows its subject by a keyed digest alone, so that it holds nothing of them."""

    __tablename__ = "erasures"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id"], ["models.tenant_id", "models.id"], ondelete="CASCADE"
        ),
        Index("ix_erasures_model", "tenant_id", "model_id", "seq"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(server_default=text("nextval('row_seq')"))
    model_id: Mapped[str]
    subject_digest: Mapped[str]
    deleted: Mapped[int]
    versions: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))  # trained on the subject's rows
    requested_by: Mapped[str]
    rebuild_id: Mapped[str | None]  # the update that learns anew from what is left
    retired_at: Mapped[datetime | None]  # when the adapters of the tainted versions were removed
    created_at: Mapped[datetime] = created_at()
