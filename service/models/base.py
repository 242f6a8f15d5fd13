"""The declarative base, and what every table shares."""

import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKey, LargeBinary, MetaData, Text, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables. Keys lead with `tenant_id`, and so do foreign keys: no row can point at another tenant's."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy reads it from the class
        str: Text(),
        int: BigInteger(),
        bytes: LargeBinary(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
        list[Any]: JSONB(),
    }


class OwnedByTenant:
    """Mixin: the row belongs to one tenant; row-level security compares this column."""

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True, sort_order=-100)


def created_at() -> Mapped[datetime]:
    """A column holding the database's time of insertion."""
    return mapped_column(server_default=func.now())


def new_id(prefix: str) -> str:
    """Returns an opaque random id such as `mdl_5f0c…`: 96 random bits after the prefix."""
    return f"{prefix}_{secrets.token_hex(12)}"
