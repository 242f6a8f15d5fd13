"""The outbox: what webhooks are told of is written by the transaction in which it happens.

So a change that rolls back is never told of, and one that commits always is. Each function is one statement, which for a
tenant without webhooks finds no row to insert. A webhook that is being deleted meanwhile is waited for and passed over:
a reference to it must never fail the change itself.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.models import TEST_EVENT, EventType, Model, Update, UpdateState, Webhook, new_id

EVENTS_OF_STATES: Mapping[UpdateState, EventType] = {
    UpdateState.AWAITING_APPROVAL: EventType.UPDATE_HELD,
    UpdateState.PROMOTED: EventType.UPDATE_PROMOTED,
    UpdateState.REJECTED: EventType.UPDATE_REJECTED,
    UpdateState.FAILED: EventType.UPDATE_FAILED,
    UpdateState.CANCELLED: EventType.UPDATE_CANCELLED,
}
COLUMNS = "tenant_id, id, webhook_id, message_id, type, model_id, data"
NEW_ID = "'dlv_' || replace(gen_random_uuid()::text, '-', '')"
# A tenant is named in every condition: a sweeper sees them all.
LISTENING = """
    WHERE w.tenant_id = :tenant AND w.enabled AND (w.events IS NULL OR :type = ANY (w.events)) FOR KEY SHARE OF w
"""
TELL_OF_UPDATE = text(f"""
    INSERT INTO webhook_deliveries ({COLUMNS})
    SELECT w.tenant_id, {NEW_ID}, w.id, :message, :type, m.id,
           jsonb_build_object('model', m.name, 'model_id', m.id, 'update', u.id, 'version', u.version,
                              'compared_with', u.compared_with, 'verdict', u.verdict ->> 'decision',
                              'decided_by', u.decided_by,
                              'error', CASE u.state WHEN 'failed' THEN u.error ->> 'code' END)
    FROM webhooks w JOIN updates u ON u.tenant_id = w.tenant_id AND u.id = :update
    JOIN models m ON m.tenant_id = w.tenant_id AND m.id = u.model_id {LISTENING}
""")  # noqa: S608  # made of constants
TELL_OF_CHAMPION = text(f"""
    INSERT INTO webhook_deliveries ({COLUMNS})
    SELECT w.tenant_id, {NEW_ID}, w.id, :message, :type, m.id,
           jsonb_build_object('model', m.name, 'model_id', m.id, 'champion', a.to_version, 'before', a.from_version,
                              'previous', p.to_version, 'by', a.actor)
    FROM webhooks w JOIN alias_moves a ON a.tenant_id = w.tenant_id AND a.id = :move
    LEFT JOIN alias_moves p ON p.tenant_id = a.tenant_id AND p.id = a.predecessor_id
    JOIN models m ON m.tenant_id = w.tenant_id AND m.id = a.model_id {LISTENING}
""")  # noqa: S608  # made of constants
TELL_OF_TEST = text(f"""
    INSERT INTO webhook_deliveries ({COLUMNS})
    VALUES (:tenant, {NEW_ID}, :webhook, :message, :type, NULL, jsonb_build_object('webhook', CAST(:webhook AS text)))
    RETURNING id
""")  # noqa: S608  # made of constants


def tell_of_update(session: Session, *, update: Update) -> None:
    """Tells the tenant's webhooks that an update has come to its present state, where that is worth a message."""
    event = EVENTS_OF_STATES.get(UpdateState(update.state))
    if event is not None:
        _tell(session, TELL_OF_UPDATE, tenant=update.tenant_id, type=event, update=update.id)


def tell_of_champion(session: Session, *, model: Model, move_id: int, event: EventType) -> None:
    """Tells the tenant's webhooks that a person moved a model's champion, by the row of the history that says so."""
    _tell(session, TELL_OF_CHAMPION, tenant=model.tenant_id, type=event, move=move_id)


def tell_of_test(session: Session, *, webhook: Webhook) -> str:
    """Sends a `webhook.test` to one webhook; returns the id of the delivery."""
    values = {
        "tenant": webhook.tenant_id,
        "webhook": webhook.id,
        "message": new_id("msg"),
        "type": TEST_EVENT,
    }
    return str(session.scalars(TELL_OF_TEST, values).one())


def _tell(session: Session, statement: Any, *, tenant: str, type: EventType, **values: object) -> None:  # noqa: A002  # as the column
    session.execute(statement, {"tenant": tenant, "type": type.value, "message": new_id("msg"), **values})
