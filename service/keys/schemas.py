"""What the calls about keys take and answer."""

from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from service.models import ApiKey
from service.schemas import storable
from service.security import MAX_OVERLAP, Scope


def _in_the_future(moment: datetime) -> datetime:
    if moment <= datetime.now(UTC):
        raise ValueError("lies in the past; a key must be valid when it is made")
    return moment


class KeyCreate(BaseModel):
    """A new key of the caller's tenant."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(storable)] = Field(
        min_length=1, max_length=128, description="What it is for; history and audit show it"
    )
    scopes: list[Scope] = Field(
        min_length=1, max_length=len(Scope), description="Only scopes of your own key"
    )
    expires_at: Annotated[AwareDatetime, AfterValidator(_in_the_future)] | None = Field(
        default=None, description="Default: valid until it is revoked"
    )


class KeyRotate(BaseModel):
    """How to replace a key's secret."""

    model_config = ConfigDict(extra="forbid")

    overlap_seconds: int = Field(
        default=0,
        ge=0,
        le=int(MAX_OVERLAP.total_seconds()),
        description="How long the old secret stays valid",
    )


class KeyRead(BaseModel):
    """A key, without its secret."""

    id: str
    prefix: str = Field(description="What follows `plm_` in the key")
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_at: datetime | None
    previous_secret_valid_until: datetime | None = Field(description="Until when the rotated secret is taken")
    last_used_at: datetime | None = Field(description="To the minute")

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """Describes a stored key."""
        return cls(**_fields(key))


class KeyWithSecret(KeyRead):
    """A key with its secret, which is shown this once."""

    api_key: str | None = Field(
        description="The key to send; null when an Idempotency-Key repeats the request"
    )

    @classmethod
    def made(cls, key: ApiKey, api_key: str) -> Self:
        """Describes a key whose secret was just made."""
        return cls(**_fields(key), api_key=api_key)


def _fields(key: ApiKey) -> dict[str, object]:
    shown = {
        name: getattr(key, name) for name in KeyRead.model_fields if name != "previous_secret_valid_until"
    }
    return {**shown, "previous_secret_valid_until": key.previous_expires_at}
