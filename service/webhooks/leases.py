"""What whoever sends does to deliveries: claim one, learn what to send, record what came of it.

Every claim raises the row's fence, and only its holder records: one that was frozen past its lease changes nothing. All
times are the database's. Order of locks: the webhook, then its deliveries.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import random
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from service.models import DeliveryState, Webhook, WebhookDelivery, WebhookSecret
from service.webhooks.commands import switch_off
from service.webhooks.schedule import MAX_TRIES, is_given_up, pause_seconds, retry_after_seconds
from service.webhooks.sealing import open_sealed
from service.webhooks.sending import Answer, Message

LEASE_SECONDS = 90.0  # longer than resolving a name and one request may take
MOST_OF_A_TENANT = (
    4  # of its webhooks are called at once, so that one tenant's slow receivers hold up nobody else
)
LOG_LENGTH = 20
GONE = 410
SERVICE = "webhooks"  # as the audit names who switched a webhook off

# The first due delivery of each webhook to which none is being sent; tenants take turns.
CLAIM = text("""
    WITH held AS (
        SELECT tenant_id, webhook_id FROM webhook_deliveries WHERE lease_expires_at > now()
    ), heads AS (
        SELECT DISTINCT ON (d.tenant_id, d.webhook_id) d.tenant_id, d.id, d.next_attempt_at
        FROM webhook_deliveries d WHERE d.state = 'pending' AND d.next_attempt_at <= now()
        AND NOT EXISTS (SELECT FROM held h WHERE h.tenant_id = d.tenant_id AND h.webhook_id = d.webhook_id)
        ORDER BY d.tenant_id, d.webhook_id, d.next_attempt_at, d.seq
    ), ranked AS (
        SELECT heads.*, row_number() OVER (PARTITION BY heads.tenant_id ORDER BY heads.next_attempt_at)
                        + (SELECT count(*) FROM held h WHERE h.tenant_id = heads.tenant_id) AS turn
        FROM heads
    ), chosen AS (
        SELECT d.tenant_id, d.id FROM ranked JOIN webhook_deliveries d ON d.tenant_id = ranked.tenant_id AND d.id = ranked.id
        WHERE ranked.turn <= :most_of_a_tenant AND d.state = 'pending' AND d.next_attempt_at <= now()
        AND (d.lease_expires_at IS NULL OR d.lease_expires_at <= now())
        ORDER BY ranked.turn, ranked.next_attempt_at LIMIT :limit FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE webhook_deliveries d SET fence = d.fence + 1, lease_expires_at = now() + make_interval(secs => :lease_seconds)
    FROM chosen WHERE d.tenant_id = chosen.tenant_id AND d.id = chosen.id
    RETURNING d.tenant_id, d.id, d.fence
""")


@dataclass(frozen=True, slots=True)
class Claim:
    """The hold on one delivery."""

    tenant: str
    delivery_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class Errand:
    """What is to be sent, where, signed with what, at which moment by the database's clock."""

    webhook_id: str
    url: str = field(repr=False)  # addresses may be secrets themselves
    secrets: tuple[str, ...] = field(repr=False)
    message: Message
    now: datetime


def claim_due(session: Session, *, limit: int) -> list[Claim]:
    """Claims due deliveries, one of a webhook at a time. Needs a worker session that sees every tenant."""
    values = {"limit": limit, "most_of_a_tenant": MOST_OF_A_TENANT, "lease_seconds": LEASE_SECONDS}
    return [Claim(*row) for row in session.execute(CLAIM, values)]


def prepare(session: Session, *, claim: Claim) -> Errand | None:
    """Returns what a claimed delivery sends; None where the claim is lost or its webhook gone, and
    where it is given up for one that is switched off.
    """
    row = session.scalar(select(WebhookDelivery).where(*_held_by(claim)))
    if row is None:
        return None
    webhook = session.get(Webhook, {"tenant_id": claim.tenant, "id": row.webhook_id})
    if webhook is None:
        return None
    if not webhook.enabled:  # meanwhile; what was pending then is given up already
        now = _now(session)
        _note(row, Answer(None, "the webhook was switched off"), at=now, seconds=None)
        _finish(row, DeliveryState.FAILED, now=now)
        return None
    return Errand(
        webhook_id=webhook.id,
        url=webhook.url,
        secrets=_secrets(session, webhook=webhook),
        message=Message(row.message_id, row.type, row.created_at, row.data),
        now=_now(session),
    )


def _held_by(claim: Claim) -> tuple[Any, ...]:
    return (WebhookDelivery.id == claim.delivery_id, WebhookDelivery.fence == claim.fence)


def _secrets(session: Session, *, webhook: Webhook) -> tuple[str, ...]:
    """The webhook's valid secrets that this process's pepper opens, newest first; those that have expired are deleted."""
    of_webhook = WebhookSecret.webhook_id == webhook.id
    session.execute(delete(WebhookSecret).where(of_webhook, WebhookSecret.expires_at <= func.now()))
    stored = session.scalars(
        select(WebhookSecret.sealed).where(of_webhook).order_by(WebhookSecret.seq.desc())
    )
    opened = (open_sealed(sealed, owner=webhook.id) for sealed in stored)
    return tuple(secret for secret in opened if secret is not None)


def _now(session: Session) -> datetime:
    return session.scalars(select(func.now())).one()


def record(session: Session, *, claim: Claim, answer: Answer, seconds: float) -> DeliveryState | None:
    """Records an attempt that took `seconds`: delivered, to be tried again, or given up. None when the claim is lost.

    A webhook that answers 410, or has taken nothing for days when a delivery is given up, is switched off.
    """
    webhook = session.scalar(
        select(Webhook)
        .join(WebhookDelivery, WebhookDelivery.webhook_id == Webhook.id)
        .where(*_held_by(claim))
        .with_for_update(key_share=True, of=Webhook)
    )
    row = session.scalar(select(WebhookDelivery).where(*_held_by(claim)).with_for_update())
    if webhook is None or row is None:
        return None
    now = _now(session)
    _note(row, answer, at=now, seconds=round(seconds, 3))
    row.attempts, row.tries = row.attempts + 1, row.tries + 1
    if answer.is_success:
        webhook.failing_since = None
        _finish(row, DeliveryState.DELIVERED, now=now)
    else:
        _fail(session, webhook=webhook, row=row, answer=answer, now=now)
    session.flush()
    return DeliveryState(row.state)


def _fail(session: Session, *, webhook: Webhook, row: WebhookDelivery, answer: Answer, now: datetime) -> None:
    webhook.failing_since = webhook.failing_since or now
    pause = pause_seconds(
        tries=row.tries, retry_after_seconds=retry_after_seconds(answer.headers, now=now), chance=random()  # noqa: S311  # no secret
    )  # fmt: skip
    if not webhook.enabled or pause is None or answer.status_code == GONE:
        _finish(row, DeliveryState.FAILED, now=now)
        session.flush()
    else:
        row.next_attempt_at = now + timedelta(seconds=pause)
    if webhook.enabled and answer.status_code == GONE:
        switch_off(session, webhook=webhook, reason="its receiver answered 410 Gone", actor=SERVICE)
    elif (
        webhook.enabled
        and row.tries >= MAX_TRIES
        and is_given_up(failing_since=webhook.failing_since, now=now)
    ):
        since = f"{webhook.failing_since:%Y-%m-%d}"
        switch_off(
            session, webhook=webhook, reason=f"nothing could be delivered since {since}", actor=SERVICE
        )


def _note(row: WebhookDelivery, answer: Answer, *, at: datetime, seconds: float | None) -> None:
    """Adds what came of a claim to the delivery's log, and lets go of it."""
    entry = {
        "at": at.isoformat(),
        "status_code": answer.status_code,
        "error": answer.error,
        "seconds": seconds,
    }
    row.log = [*row.log, entry][-LOG_LENGTH:]
    row.lease_expires_at = None


def _finish(row: WebhookDelivery, state: DeliveryState, *, now: datetime) -> None:
    row.state, row.finished_at, row.next_attempt_at = state, now, None


def delete_old_deliveries(session: Session, *, days: int, limit: int) -> int:
    """Deletes at most `limit` deliveries of every tenant that finished more than `days` ago; returns how many."""
    old = (
        select(WebhookDelivery.tenant_id, WebhookDelivery.id)
        .where(WebhookDelivery.finished_at < func.now() - func.make_interval(0, 0, 0, days))
        .limit(limit)
        .with_for_update(skip_locked=True)  # one that is just being replayed stays
        .cte("old")
    )
    deleted = delete(WebhookDelivery).where(
        WebhookDelivery.tenant_id == old.c.tenant_id, WebhookDelivery.id == old.c.id
    )
    return len(session.execute(deleted.returning(WebhookDelivery.id)).all())
