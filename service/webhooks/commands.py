"""Writes of webhooks: making, changing, rotating, switching off, deleting; and sending again."""

import base64
import secrets
from datetime import datetime, timedelta

import httpx
from sqlalchemy import delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from service.audit.commands import record
from service.config import get_settings
from service.errors import Conflict, TooManyRequests
from service.models import (
    AuditAction,
    DeliveryState,
    EventType,
    Webhook,
    WebhookDelivery,
    WebhookSecret,
    new_id,
)
from service.webhooks.outbox import tell_of_test
from service.webhooks.queries import get_delivery, get_webhook
from service.webhooks.schemas import WebhookChange, WebhookCreate
from service.webhooks.sealing import seal

SECRET_BYTES = 32  # Standard Webhooks asks for 24 to 64
MOST_PENDING_FOR_A_TEST = 10


def create_webhook(
    session: Session, *, request: WebhookCreate, tenant: str, actor: str
) -> tuple[Webhook, str]:
    """Stores a webhook whose address was checked, and returns it with its secret, shown only now.

    Raises `TooManyRequests` past the tenant's limit.
    """
    limit = get_settings().max_webhooks_per_tenant
    if (session.scalar(select(func.count()).select_from(Webhook)) or 0) >= limit:
        raise TooManyRequests(
            f"There are {limit} webhooks already, which is the limit; delete one, or let one be told of more.",
            code="too_many_webhooks",
        )
    webhook = Webhook(
        tenant_id=tenant, id=new_id("whk"), url=request.url, events=_stored(request.events),
        description=request.description,
    )  # fmt: skip
    session.add(webhook)
    session.flush()
    secret = _add_secret(session, webhook=webhook)
    _record(session, webhook, AuditAction.WEBHOOK_CREATED, actor, events=webhook.events)
    return webhook, secret


def _stored(events: list[EventType] | None) -> list[str] | None:
    return None if events is None else sorted({event.value for event in events})


def _add_secret(session: Session, *, webhook: Webhook) -> str:
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"
    session.add(
        WebhookSecret(
            tenant_id=webhook.tenant_id,
            id=new_id("whs"),
            webhook_id=webhook.id,
            sealed=seal(secret, owner=webhook.id),
        )
    )  # fmt: skip
    session.flush()
    return secret


def change_webhook(session: Session, *, webhook: str, change: WebhookChange, actor: str) -> Webhook:
    """Changes a webhook. A new address was checked before. What is pending goes to the new one."""
    row = get_webhook(session, webhook=webhook, lock=True)
    given = change.model_fields_set
    if change.url is not None and change.url != row.url:
        row.url = change.url
        row.failing_since = None  # what the old address failed is not held against the new one
    if "events" in given:
        row.events = _stored(change.events)
    if "description" in given:
        row.description = change.description
    if change.enabled is not None and change.enabled != row.enabled:
        row.enabled, row.disabled_reason, row.failing_since = change.enabled, None, None
        if not row.enabled:
            _give_up_pending(session, webhook=row, reason="the webhook was switched off")
    session.flush()
    _record(session, row, AuditAction.WEBHOOK_CHANGED, actor, events=row.events, enabled=row.enabled)
    return row


def switch_off(session: Session, *, webhook: Webhook, reason: str, actor: str) -> None:
    """Switches a webhook off that the caller has locked: it is told of nothing more, and what is pending is given up."""
    webhook.enabled, webhook.disabled_reason = False, reason
    session.flush()
    _give_up_pending(session, webhook=webhook, reason=f"the webhook was switched off: {reason}")
    _record(session, webhook, AuditAction.WEBHOOK_DISABLED, actor, reason=reason)


def _give_up_pending(session: Session, *, webhook: Webhook, reason: str) -> None:
    # What is on its way stays as it is until its sender records what came of it.
    entry = func.jsonb_build_object(
        "at", func.now(), "status_code", None, "error", literal(reason), "seconds", None
    )  # fmt: skip
    session.execute(
        update(WebhookDelivery)
        .where(
            WebhookDelivery.webhook_id == webhook.id,
            WebhookDelivery.state == DeliveryState.PENDING,
            WebhookDelivery.lease_expires_at.is_(None),
        )
        .values(
            state=DeliveryState.FAILED, finished_at=func.now(), next_attempt_at=None,
            log=WebhookDelivery.log.op("||", return_type=JSONB())(entry),
        ),
        execution_options={"synchronize_session": False},
    )  # fmt: skip


def rotate_secret(
    session: Session, *, webhook: str, overlap: timedelta, actor: str
) -> tuple[Webhook, str, datetime | None]:
    """Gives a webhook a new secret; returns both, and until when messages are signed with the old one too.

    One that an earlier rotation left is dropped now.
    """
    row = get_webhook(session, webhook=webhook, lock=True)
    now = session.scalars(select(func.now())).one()
    of_webhook = WebhookSecret.webhook_id == row.id
    replaced = WebhookSecret.expires_at.is_not(None) if overlap else of_webhook
    session.execute(delete(WebhookSecret).where(of_webhook, replaced))
    session.execute(update(WebhookSecret).where(of_webhook).values(expires_at=now + overlap))
    secret = _add_secret(session, webhook=row)
    row.rotated_at = now
    session.flush()
    _record(
        session, row, AuditAction.WEBHOOK_ROTATED, actor, overlap_seconds=int(overlap.total_seconds())
    )  # fmt: skip
    return row, secret, now + overlap if overlap else None


def delete_webhook(session: Session, *, webhook: str, actor: str) -> None:
    """Deletes a webhook with its secrets and its log; what is pending is not sent."""
    row = get_webhook(session, webhook=webhook, lock=True)
    _record(session, row, AuditAction.WEBHOOK_DELETED, actor)
    session.execute(delete(Webhook).where(Webhook.id == row.id))


def send_test(session: Session, *, webhook: str) -> WebhookDelivery:
    """Sends a `webhook.test`, whatever the webhook is to be told of.

    Raises `Conflict` for one that is switched off, `TooManyRequests` while many deliveries to it are pending.
    """
    row = get_webhook(session, webhook=webhook)
    _require_enabled(row)
    pending = session.scalar(
        select(func.count())
        .select_from(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == row.id, WebhookDelivery.state == DeliveryState.PENDING)
    )
    if (pending or 0) >= MOST_PENDING_FOR_A_TEST:
        raise TooManyRequests(
            f"{pending} deliveries to this webhook are pending already; look at those first.",
            code="too_many_deliveries", headers={"Retry-After": "30"},
        )  # fmt: skip
    return get_delivery(session, webhook=row.id, delivery=tell_of_test(session, webhook=row))


def replay_delivery(session: Session, *, webhook: str, delivery: str) -> WebhookDelivery:
    """Sends a delivery again at once, under the same message id; a failed one has all of its tries again.

    Raises `Conflict` for a webhook that is switched off.
    """
    row = get_webhook(session, webhook=webhook, lock=True)
    _require_enabled(row)
    found = get_delivery(session, webhook=row.id, delivery=delivery, lock=True)
    found.state, found.tries, found.finished_at = DeliveryState.PENDING, 0, None
    found.next_attempt_at = session.scalar(select(func.now()))
    session.flush()
    return found


def _require_enabled(webhook: Webhook) -> None:
    if not webhook.enabled:
        raise Conflict(
            'This webhook is switched off; PATCH it with {"enabled": true} first.', code="webhook_disabled"
        )


def _record(session: Session, webhook: Webhook, action: AuditAction, actor: str, **data: object) -> None:
    """Audits an act by the webhook's host alone: paths and queries of such addresses are often secrets."""
    record(
        session, tenant=webhook.tenant_id, actor=actor, action=action, target=webhook.id,
        host=httpx.URL(webhook.url).host, **data,  # its form was checked when it was stored
    )  # fmt: skip
