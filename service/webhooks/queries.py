"""Reads of webhooks and of what was sent to them."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from service.db import among
from service.errors import NotFound
from service.models import DeliveryState, Webhook, WebhookDelivery, WebhookSecret
from service.security import Principal, Scope
from service.webhooks.addresses import without_path
from service.webhooks.schemas import WebhookRead


def get_webhook(session: Session, *, webhook: str, lock: bool = False) -> Webhook:
    """Returns the tenant's webhook. Raises `NotFound`. `lock` holds the row, not against deliveries that are added to it."""
    statement = select(Webhook).where(Webhook.id == webhook)
    if lock:
        statement = statement.with_for_update(key_share=True)
    row = session.scalar(statement)
    if row is None:
        raise NotFound(
            f"No webhook '{webhook}'. GET /v1/webhooks lists yours.", code="webhook_not_found", param="webhook"
        )  # fmt: skip
    return row


def get_delivery(session: Session, *, webhook: str, delivery: str, lock: bool = False) -> WebhookDelivery:
    """Returns a delivery of the webhook. Raises `NotFound`, also for one that is no longer kept."""
    statement = select(WebhookDelivery).where(
        WebhookDelivery.webhook_id == webhook, WebhookDelivery.id == delivery
    )
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise NotFound(
            f"The webhook '{webhook}' has no delivery '{delivery}', or keeps it no longer.",
            code="delivery_not_found", param="delivery",
        )  # fmt: skip
    return row


def deliveries_of(webhook: Webhook, *, state: DeliveryState | None) -> Select[WebhookDelivery]:
    """Selects a webhook's deliveries, of one state if asked."""
    statement = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook.id)
    return statement if state is None else statement.where(WebhookDelivery.state == state)


def describe_webhooks(
    session: Session, *, webhooks: Collection[Webhook], principal: Principal
) -> list[WebhookRead]:
    """Describes webhooks as the API shows them to this key: their whole addresses to an `admin` alone."""
    overlaps = _overlaps(session, webhooks=[webhook.id for webhook in webhooks])
    described = [WebhookRead.of(webhook, overlap_ends=overlaps.get(webhook.id)) for webhook in webhooks]
    if Scope.ADMIN in principal.scopes:
        return described
    return [webhook.model_copy(update={"url": without_path(webhook.url)}) for webhook in described]


def _overlaps(session: Session, *, webhooks: Collection[str]) -> dict[str, datetime]:
    """Until when a rotated secret of these webhooks goes on signing, where one does."""
    ends = func.max(WebhookSecret.expires_at)
    rows = session.execute(
        select(WebhookSecret.webhook_id, ends)
        .where(among(WebhookSecret.webhook_id, webhooks), WebhookSecret.expires_at > func.now())
        .group_by(WebhookSecret.webhook_id)
    )
    return {webhook: until for webhook, until in rows if until is not None}
