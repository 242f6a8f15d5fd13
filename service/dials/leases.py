"""What workers do to dials: claim, hold, give back, fail. As with updates, every write names the claim's fence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select, text, update
from sqlalchemy.orm import Session

from service.models import Dial, DialState
from service.updates.leases import LeaseState, from_now, seconds_before_retry

# Tenants take turns: fewest dials under way first, then whoever asked first. Rows that another is claiming are passed over.
QUEUE = text("""
    SELECT d.tenant_id, d.id FROM dials d
    WHERE d.state = 'queued' AND (d.next_attempt_at IS NULL OR d.next_attempt_at <= now())
    ORDER BY (SELECT count(*) FROM dials s WHERE s.tenant_id = d.tenant_id AND s.state = 'scoring'), d.requested_at, d.id
    LIMIT 1 FOR UPDATE OF d SKIP LOCKED
""")


@dataclass(frozen=True, slots=True)
class DialClaim:
    """One worker's hold on one dial."""

    tenant: str
    dial_id: str
    model_id: str
    version: int
    fence: int
    request_id: str | None

    @property
    def subject(self) -> str:
        """What is held."""
        return self.dial_id


def claim_dial(session: Session, *, worker: str, lease_seconds: float) -> DialClaim | None:
    """Claims the next dial to score, or returns None. Needs a worker session that sees every tenant."""
    found = session.execute(QUEUE).one_or_none()
    if found is None:
        return None
    row = session.get_one(Dial, (found.tenant_id, found.id), populate_existing=True)
    row.state, row.fence, row.worker = DialState.SCORING, row.fence + 1, worker
    session.flush()
    session.execute(update(Dial).where(*_held_by_row(row)).values(lease_expires_at=from_now(lease_seconds)))
    return DialClaim(row.tenant_id, row.id, row.model_id, row.version, row.fence, row.request_id)


def _held_by_row(row: Dial) -> tuple[Any, ...]:
    return (Dial.tenant_id == row.tenant_id, Dial.id == row.id, Dial.fence == row.fence)


def _held_by(claim: DialClaim) -> tuple[Any, ...]:
    return (Dial.id == claim.dial_id, Dial.fence == claim.fence, Dial.state == DialState.SCORING)


def renew_dial(
    session: Session, *, claim: DialClaim, lease_seconds: float, progress: Mapping[str, Any] | None
) -> LeaseState:
    """Extends the lease; tells whether the claim still holds. Points tell how far it is, `progress` nothing more."""
    row = session.execute(
        update(Dial)
        .where(*_held_by(claim))
        .values(lease_expires_at=from_now(lease_seconds))
        .returning(Dial.id)
    ).one_or_none()
    return LeaseState(held=row is not None, cancel_requested=False)


def hold_dial(session: Session, *, claim: DialClaim) -> Dial | None:
    """Locks the claimed row to the transaction's end and returns it; None when the claim is lost."""
    return session.scalar(
        select(Dial).where(*_held_by(claim)).with_for_update().execution_options(populate_existing=True)
    )


def finish_dial(session: Session, *, claim: DialClaim) -> bool:
    """Ends a dial whose points are all there; False when the claim is lost."""
    return _leave(session, claim, state=DialState.DONE, finished_at=func.now(), error=None)


def give_back_dial(session: Session, *, claim: DialClaim) -> bool:
    """Returns a dial to the queue without using up an attempt: the worker is stopping. False when the claim is lost."""
    return _leave(session, claim, state=DialState.QUEUED)


def fail_dial(
    session: Session, *, claim: DialClaim, code: str, message: str, final: bool = False
) -> DialState | None:
    """Counts a failed attempt: the dial waits for the next while attempts are left, else it fails. None: the claim is lost."""
    row = hold_dial(session, claim=claim)
    if row is None:
        return None
    wait_seconds = seconds_before_retry(row.attempts_used)
    return _use_attempt(session, row, code=code, message=message, final=final, wait_seconds=wait_seconds)


def _use_attempt(
    session: Session, row: Dial, *, code: str, message: str, final: bool, wait_seconds: float
) -> DialState:
    used = row.attempts_used + 1
    failed = final or used >= row.max_attempts
    row.state = DialState.FAILED if failed else DialState.QUEUED
    row.attempts_used, row.worker, row.lease_expires_at = min(used, row.max_attempts), None, None
    row.error = {"code": code, "message": message, "attempt": used}
    row.finished_at = session.scalar(select(func.now())) if failed else None
    row.next_attempt_at = (
        session.scalar(select(from_now(wait_seconds))) if wait_seconds and not failed else None
    )
    session.flush()
    return DialState(row.state)


def _leave(session: Session, claim: DialClaim, **values: Any) -> bool:
    row = session.execute(
        update(Dial)
        .where(*_held_by(claim))
        .values(worker=None, lease_expires_at=None, **values)
        .returning(Dial.id)
    ).one_or_none()
    return row is not None


def sweep_expired_dials(session: Session) -> list[str]:
    """Takes back every dial whose lease has expired; returns their ids. Needs a session that sees every tenant."""
    rows: Sequence[Dial] = session.scalars(
        select(Dial)
        .where(Dial.state == DialState.SCORING, Dial.lease_expires_at < func.now())
        .with_for_update(skip_locked=True)
    ).all()
    for row in rows:
        message = f"the worker {row.worker} stopped renewing its lease; it was killed, hung, or cut off from the database"
        _use_attempt(session, row, code="lease_expired", message=message, final=False, wait_seconds=0.0)
    return [row.id for row in rows]


def dial_is_waiting(session: Session) -> bool:
    """Says whether any dial could be claimed now. Needs a session that sees every tenant."""
    due = or_(Dial.next_attempt_at.is_(None), Dial.next_attempt_at <= func.now())
    found = select(Dial.id).where(Dial.state == DialState.QUEUED, due).limit(1)
    return session.scalar(found) is not None
