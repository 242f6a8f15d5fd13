"""Tenants and their API keys."""

from datetime import datetime

from sqlalchemy import Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant, created_at


class Tenant(Base):
    """The owner of models, data and keys; the id is the name the operator gave."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = created_at()


class ApiKey(OwnedByTenant, Base):
    """An API key, found by its public prefix; of the secret only a keyed hash is stored.

    A rotation keeps the row: the secret that it replaced stays valid until `previous_expires_at`.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(server_default=text("nextval('row_seq')"))
    prefix: Mapped[str] = mapped_column(unique=True)
    secret_hash: Mapped[bytes]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    name: Mapped[str]
    created_at: Mapped[datetime] = created_at()
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    rotated_at: Mapped[datetime | None]
    previous_hash: Mapped[bytes | None]
    previous_expires_at: Mapped[datetime | None]
