"""Sessions of the pages that were signed out of."""

from datetime import datetime

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.models.base import Base, OwnedByTenant


class EndedSession(OwnedByTenant, Base):
    """A session that was ended before its time, by its token's nonce; of no use once it would be over by itself."""

    __tablename__ = "ended_sessions"
    __table_args__ = (Index("uq_ended_sessions_nonce", "nonce", unique=True),)

    nonce: Mapped[str] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime]
