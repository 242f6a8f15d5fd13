"""The transition table of updates, and the one function that changes a state."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from service import tracing
from service.db import EVERY_TENANT, after_commit
from service.models import IMPORT, Update, UpdateEvent, UpdateState
from service.registry.disposal import discard_artifacts
from service.request_context import bind_update
from service.webhooks.outbox import tell_of_update

QUEUED, TRAINING, EVALUATING = UpdateState.QUEUED, UpdateState.TRAINING, UpdateState.EVALUATING
AWAITING_APPROVAL = UpdateState.AWAITING_APPROVAL
PROMOTED, REJECTED = UpdateState.PROMOTED, UpdateState.REJECTED
FAILED, CANCELLED = UpdateState.FAILED, UpdateState.CANCELLED

TRANSITIONS: Mapping[UpdateState, frozenset[UpdateState]] = {
    QUEUED: frozenset({TRAINING, FAILED, CANCELLED}),
    # back to the queue on a lost lease or a graceful stop
    TRAINING: frozenset({EVALUATING, QUEUED, FAILED, CANCELLED}),
    EVALUATING: frozenset({PROMOTED, REJECTED, AWAITING_APPROVAL, QUEUED, FAILED, CANCELLED}),
    # back to evaluating when the champion moved meanwhile
    AWAITING_APPROVAL: frozenset({PROMOTED, REJECTED, EVALUATING, FAILED, CANCELLED}),
    PROMOTED: frozenset(),
    REJECTED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}
ACTIVE = frozenset({TRAINING, EVALUATING})
BEFORE_VERSION = frozenset({QUEUED, *ACTIVE})
"""States in which an update may have no version yet, and an import needs the tar that it was asked for with."""
FINISHED = frozenset(state for state, successors in TRANSITIONS.items() if not successors)


def change_state(
    session: Session,
    *,
    update_id: str,
    to: UpdateState,
    only_from: Collection[UpdateState] | None = None,
    fence: int | None = None,
    data: Mapping[str, Any] | None = None,
    **values: Any,
) -> Update | None:
    """Moves an update to state `to`, leaves an event and tells webhooks; returns the row, or None where nothing matched.

    Nothing matches when the update is not in a state that leads to `to` (or not in `only_from`), or when its
    fence has risen past `fence`: then another worker holds it. `values` are columns set along with the state.
    """
    sources = [state for state, successors in TRANSITIONS.items() if to in successors]
    if only_from is not None:
        sources = [state for state in sources if state in only_from]
    statement = update(Update).where(Update.id == update_id, Update.state.in_(sources))
    if fence is not None:
        statement = statement.where(Update.fence == fence)
    if to in FINISHED:
        values |= {"finished_at": func.now(), "next_attempt_at": None}
    if to not in ACTIVE:
        values |= {"worker": None, "lease_expires_at": None, "progress": None}
    row = session.scalar(
        statement.values(state=to, **values).returning(Update).execution_options(populate_existing=True)
    )
    if row is not None:
        record_event(session, update=row, type_=to, data=data)
        if to != AWAITING_APPROVAL or "verdict" in values:  # to wait again for another attempt is no news
            tell_of_update(session, update=row)
        # Not in a sweep of expired leases: nothing delays those. The sweep of orphans takes the upload then.
        if row.strategy == IMPORT and to not in BEFORE_VERSION and session.info["tenant"] != EVERY_TENANT:
            discard_artifacts(session, [row.parameters["sha256"]])
    return row


def record_event(
    session: Session, *, update: Update, type_: str, data: Mapping[str, Any] | None = None
) -> None:
    """Appends an event to an update's life, and to its trace once the transaction has committed."""
    session.add(
        UpdateEvent(tenant_id=update.tenant_id, update_id=update.id, type=str(type_), data=dict(data or {}))
    )
    session.flush()
    bind_update(update.id)
    if tracing.is_on():
        note = tracing.noting(f"update.{type_}", within=update.traceparent, attributes=_for_trace(update))
        after_commit(session, note)


def _for_trace(update: Update) -> dict[str, str | int]:
    known: dict[str, str | int | None] = {
        "tenant": update.tenant_id, "model": update.model_id, "update": update.id, "state": str(update.state),
        "fence": update.fence, "version": update.version,
    }  # fmt: skip
    return {f"palimpsest.{name}": value for name, value in known.items() if value is not None}
