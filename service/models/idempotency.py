"""Answers kept for requests that carry an `Idempotency-Key`."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at


class IdempotencyKey(OwnedByTenant, Base):
    """The answer to one creating request, committed in the same transaction as what it created."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]  # of method, path and body
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = created_at()
