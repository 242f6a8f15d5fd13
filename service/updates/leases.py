"""What workers do to updates: claim, hold, give back, fail.

Every write names the fence of the claim, so a worker that lost its lease can change nothing. All times are
the database's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Interval, cast, func, literal, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.config import get_settings
from service.models import Update, UpdateState
from service.updates.states import ACTIVE, change_state, record_event

RETRY_GROWTH = 4.0
LONGEST_RETRY_SECONDS = 900.0

# The head of each model's queue, where the model has no active update and the head waits for no further attempt; tenants take turns: fewest active
# updates first, then whoever waited longest since its last start.
QUEUE_HEADS = text("""
    WITH heads AS (
        SELECT DISTINCT ON (tenant_id, model_id) tenant_id, model_id, id, seq, next_attempt_at
        FROM updates WHERE state = 'queued' ORDER BY tenant_id, model_id, seq
    ), tenants_now AS (
        SELECT tenant_id,
               count(*) FILTER (WHERE state IN ('training', 'evaluating')) AS active,
               max(started_at) AS last_start
        FROM updates WHERE tenant_id IN (SELECT tenant_id FROM heads) GROUP BY tenant_id
    )
    SELECT heads.id FROM heads JOIN tenants_now USING (tenant_id)
    WHERE (heads.next_attempt_at IS NULL OR heads.next_attempt_at <= now()) AND NOT EXISTS (
        SELECT FROM updates a WHERE a.tenant_id = heads.tenant_id AND a.model_id = heads.model_id
        AND a.state IN ('training', 'evaluating'))
    ORDER BY active, last_start NULLS FIRST, seq LIMIT 20
""")
# Held candidates whose verdict speaks of a champion that has moved.
STALE_VERDICTS = text("""
    SELECT u.id FROM updates u WHERE u.state = 'awaiting_approval' AND u.rescore_requested_at IS NOT NULL
    AND (u.next_attempt_at IS NULL OR u.next_attempt_at <= now()) AND NOT EXISTS (
        SELECT FROM updates a WHERE a.tenant_id = u.tenant_id AND a.model_id = u.model_id
        AND a.state IN ('training', 'evaluating'))
    ORDER BY u.rescore_requested_at LIMIT 20
""")


@dataclass(frozen=True, slots=True)
class Claim:
    """One worker's hold on one update."""

    tenant: str
    update_id: str
    model_id: str
    fence: int
    attempt: int
    request_id: str | None  # of the call that asked for the update
    rescore: bool  # the version exists; only the comparison with the champion is to be made again
    traceparent: str | None = None  # of the call's span, where it was traced
    attempt_traceparent: str | None = None  # of the span of the attempt before
    strategy: str = ""

    @property
    def subject(self) -> str:
        """What is held."""
        return self.update_id


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What renewing a lease found."""

    held: bool
    cancel_requested: bool


def claim_next(session: Session, *, worker: str, lease_seconds: float) -> Claim | None:
    """Claims the next update to work on, or returns None. Needs a worker session that sees every tenant."""
    for query, source, target in (
        # First what a person waits for, and is done in seconds.
        (STALE_VERDICTS, UpdateState.AWAITING_APPROVAL, UpdateState.EVALUATING),
        (QUEUE_HEADS, UpdateState.QUEUED, UpdateState.TRAINING),
    ):
        for update_id in session.scalars(query).all():
            claim = _claim(
                session,
                update_id=update_id,
                source=source,
                target=target,
                worker=worker,
                lease_seconds=lease_seconds,
            )
            if claim is not None:
                return claim
    return None


def _claim(
    session: Session,
    *,
    update_id: str,
    source: UpdateState,
    target: UpdateState,
    worker: str,
    lease_seconds: float,
) -> Claim | None:
    try:
        with session.begin_nested():
            row = change_state(
                session, update_id=update_id, to=target, only_from=[source], data={"worker": worker},
                fence=None, worker=worker, lease_expires_at=from_now(lease_seconds), next_attempt_at=None,
                started_at=func.coalesce(Update.started_at, func.now()),
            )  # fmt: skip
            if row is None:
                return None  # another worker was faster
            row.fence += 1
            session.flush()
    except IntegrityError:
        return None  # another update of the model became active first
    return Claim(
        tenant=row.tenant_id, update_id=row.id, model_id=row.model_id, fence=row.fence,
        attempt=row.attempts_used + 1, request_id=row.request_id,
        traceparent=row.traceparent, attempt_traceparent=row.attempt_traceparent,
        rescore=source == UpdateState.AWAITING_APPROVAL, strategy=row.strategy,
    )  # fmt: skip


def from_now(seconds: float) -> Any:
    """The database's time in so many seconds."""
    return func.now() + cast(literal(f"{seconds} seconds"), Interval)


def renew_lease(
    session: Session, *, claim: Claim, lease_seconds: float, progress: Mapping[str, Any] | None
) -> LeaseState:
    """Extends the lease and writes the progress; tells whether the claim still holds and a cancel was asked for."""
    values: dict[str, Any] = {"lease_expires_at": from_now(lease_seconds)}
    if progress is not None:
        values["progress"] = dict(progress)
    row = session.execute(
        update(Update).where(*_held_by(claim)).values(values).returning(Update.cancel_requested_at)
    ).one_or_none()
    return LeaseState(held=row is not None, cancel_requested=row is not None and row[0] is not None)


def _held_by(claim: Claim) -> tuple[Any, ...]:
    return (Update.id == claim.update_id, Update.fence == claim.fence, Update.state.in_(ACTIVE))


def hold(session: Session, *, claim: Claim) -> Update | None:
    """Locks the claimed row to the transaction's end and returns it; None when the claim is lost."""
    return session.scalar(select(Update).where(*_held_by(claim)).with_for_update())


def set_parent(session: Session, *, claim: Claim, version: int) -> bool:
    """Notes the parent an attempt starts from; False when the claim is lost."""
    row = session.execute(
        update(Update).where(*_held_by(claim)).values(parent_version=version).returning(Update.id)
    ).one_or_none()
    return row is not None


def note_attempt(session: Session, *, claim: Claim, traceparent: str | None) -> None:
    """Notes the span of an attempt, which the next one links with; does nothing once the claim is lost."""
    session.execute(update(Update).where(*_held_by(claim)).values(attempt_traceparent=traceparent))


def begin_evaluating(session: Session, *, claim: Claim) -> bool:
    """Moves a trained update on to evaluating; False when the claim is lost."""
    row = change_state(
        session,
        update_id=claim.update_id,
        to=UpdateState.EVALUATING,
        only_from=[UpdateState.TRAINING],
        fence=claim.fence,
        progress={"phase": "evaluating", "step": 0, "total_steps": 0},
    )
    return row is not None


def give_back(session: Session, *, claim: Claim, reason: str) -> bool:
    """Returns an update to where it was claimed from without using up an attempt: the worker is stopping.

    One whose cancellation was asked for ends instead: nobody would hear of it any more. False when the claim is lost.
    """
    row = hold(session, claim=claim)
    if row is None:
        return False
    if row.cancel_requested_at is not None:
        return cancel_claimed(session, claim=claim)
    to = UpdateState.AWAITING_APPROVAL if claim.rescore else UpdateState.QUEUED
    changed = change_state(
        session,
        update_id=claim.update_id,
        to=to,
        only_from=ACTIVE,
        fence=claim.fence,
        data={"reason": reason},
    )
    return changed is not None


def cancel_claimed(session: Session, *, claim: Claim) -> bool:
    """Ends an update whose cancellation was asked for."""
    row = change_state(
        session, update_id=claim.update_id, to=UpdateState.CANCELLED, only_from=ACTIVE, fence=claim.fence
    )
    return row is not None


def fail_attempt(
    session: Session, *, claim: Claim, code: str, message: str, final: bool = False
) -> UpdateState | None:
    """Counts a failed attempt: the update is queued again while attempts are left, else it fails.

    The next attempt waits `retry_seconds`, and four times as long each further time: a full disk takes a while to be seen to.
    `final` fails it at once: the error would come again. One whose cancellation was asked for is cancelled. Returns
    the new state, None when the claim is lost.
    """
    row = hold(session, claim=claim)
    if row is None:
        return None
    if row.cancel_requested_at is not None:
        cancel_claimed(session, claim=claim)
        return UpdateState.CANCELLED
    wait_seconds = seconds_before_retry(row.attempts_used)
    return _use_attempt(session, row=row, code=code, message=message, final=final, wait_seconds=wait_seconds)


def seconds_before_retry(failed_before: int) -> float:
    """Returns how long to wait after an attempt that failed, and so many before it."""
    return min(get_settings().retry_seconds * RETRY_GROWTH**failed_before, LONGEST_RETRY_SECONDS)


def _use_attempt(
    session: Session, *, row: Update, code: str, message: str, final: bool, wait_seconds: float
) -> UpdateState | None:
    used = row.attempts_used + 1
    error = {"code": code, "message": message, "attempt": used}
    retry: Literal[UpdateState.AWAITING_APPROVAL, UpdateState.QUEUED]
    retry = UpdateState.AWAITING_APPROVAL if row.version is not None else UpdateState.QUEUED
    to = UpdateState.FAILED if final or used >= row.max_attempts else retry
    changed = change_state(
        session, update_id=row.id, to=to, only_from=ACTIVE, fence=row.fence, data=error,
        attempts_used=min(used, row.max_attempts), error=error,
        next_attempt_at=from_now(wait_seconds) if to == retry and wait_seconds else None,
    )  # fmt: skip
    return to if changed is not None else None


def sweep_expired(session: Session) -> list[str]:
    """Takes back every update whose lease has expired; returns their ids. Needs a session that sees every tenant.

    A cancelled one ends; another is queued again while attempts are left, else it fails with the reason.
    Any number of sweepers may run: rows locked by one are skipped by the others.
    """
    rows = session.scalars(
        select(Update)
        .where(Update.state.in_(ACTIVE), Update.lease_expires_at < func.now())
        .with_for_update(skip_locked=True)
    ).all()
    for row in rows:
        record_event(session, update=row, type_="lease_expired", data={"worker": row.worker})
        if row.cancel_requested_at is not None:
            change_state(
                session, update_id=row.id, to=UpdateState.CANCELLED, only_from=ACTIVE, fence=row.fence
            )
            continue
        message = f"the worker {row.worker} stopped renewing its lease; it was killed, hung, or cut off from the database"
        # Without a pause: it has waited for its lease to run out.
        _use_attempt(session, row=row, code="lease_expired", message=message, final=False, wait_seconds=0.0)
    return [row.id for row in rows]


def work_is_waiting(session: Session) -> bool:
    """Says whether any update could be claimed now. Needs a session that sees every tenant."""
    return any(session.scalars(query).first() is not None for query in (QUEUE_HEADS, STALE_VERDICTS))
