"""What the calls about webhooks take and answer."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.models import DeliveryState, EventType, Webhook, WebhookDelivery
from service.schemas import FreeText, storable
from service.security import MAX_OVERLAP
from service.webhooks.addresses import MAX_URL_LENGTH

DAY_SECONDS = 86_400
Url = Annotated[
    str,
    Field(
        min_length=1, max_length=MAX_URL_LENGTH, json_schema_extra={"format": "uri"},
        description="Where to POST: https, a public address, no credentials in it",
    ),
    AfterValidator(storable),
]  # fmt: skip
Events = Annotated[
    list[EventType],
    Field(min_length=1, max_length=len(EventType), description="What to be told of; null: everything"),
]


class Body(BaseModel):
    """A request body; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class WebhookCreate(Body):
    """A new webhook."""

    url: Url
    events: Events | None = None
    description: FreeText | None = None


class WebhookChange(Body):
    """What to change of a webhook; what is left out stays."""

    url: Url | None = None
    events: Events | None = None
    description: FreeText | None = None
    enabled: bool | None = Field(
        default=None, description="false gives up what is pending; true starts anew with later events"
    )


class WebhookRotate(Body):
    """How to replace a webhook's secret."""

    overlap_seconds: int = Field(
        default=DAY_SECONDS,
        ge=0,
        le=int(MAX_OVERLAP.total_seconds()),
        description="How long messages are signed with the old secret too; 0 for one that leaked",
    )


class WebhookRead(BaseModel):
    """A webhook, without its secret."""

    id: str
    url: str = Field(
        description="With its path only for keys with the scope `admin`: paths of webhooks often hold secrets"
    )
    events: list[EventType] | None = Field(description="null: everything")
    description: str | None
    enabled: bool
    disabled_reason: str | None = Field(description="Why the service switched it off")
    failing_since: datetime | None = Field(description="The first failed attempt since the last success")
    rotated_at: datetime | None
    previous_secret_signs_until: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, webhook: Webhook, *, overlap_ends: datetime | None) -> Self:
        """Describes a stored webhook."""
        return cls(**_fields(webhook), previous_secret_signs_until=overlap_ends)


class WebhookWithSecret(WebhookRead):
    """A webhook with its secret, which is shown this once."""

    secret: str | None = Field(
        description="`whsec_…`, to verify messages with; null when an Idempotency-Key repeats the request"
    )

    @classmethod
    def made(cls, webhook: Webhook, *, secret: str, overlap_ends: datetime | None = None) -> Self:
        """Describes a webhook whose secret was just made."""
        return cls(**_fields(webhook), previous_secret_signs_until=overlap_ends, secret=secret)


def _fields(webhook: Webhook) -> dict[str, Any]:
    names = WebhookRead.model_fields.keys() - {"previous_secret_signs_until"}
    return {name: getattr(webhook, name) for name in names}


class AttemptRead(BaseModel):
    """One attempt to deliver."""

    at: datetime
    status_code: int | None = Field(description="null where there was no answer")
    error: str | None = Field(description="What went wrong, in words")
    seconds: float | None = None


class DeliveryRead(BaseModel):
    """An event for a webhook, and what came of it."""

    id: str
    message_id: str = Field(
        description="`webhook-id` of every attempt; the same for each webhook that is told"
    )
    type: str
    data: dict[str, Any]
    state: DeliveryState
    attempts: int
    status_code: int | None = Field(description="Of the latest attempt")
    error: str | None = Field(description="Of the latest attempt, in words")
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    log: list[AttemptRead] = Field(description="The latest attempts, oldest first")

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> Self:
        """Describes a stored delivery."""
        latest = delivery.log[-1] if delivery.log else {"status_code": None, "error": None}
        shown = {
            name: getattr(delivery, name)
            for name in cls.model_fields.keys() - {"log", "status_code", "error"}
        }
        return cls(
            **shown, status_code=latest["status_code"], error=latest["error"],
            log=[AttemptRead(**entry) for entry in delivery.log],
        )  # fmt: skip
