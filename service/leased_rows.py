"""What workers do to leased rows, dials and forecasts: claim, hold, give back, fail.

As with updates, every write names the claim's fence, so that a worker that lost its lease can change nothing, and all
times are the database's. A row that leaves `scoring` by another's hand, cancelled or asked for anew, is a lost claim.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from service.db import among
from service.models.leased import LeasedRow, LeasedState
from service.updates.leases import LeaseState, from_now, seconds_before_retry

Row = TypeVar("Row", bound=LeasedRow)


@dataclass(frozen=True, slots=True)
class RowClaim:
    """One worker's hold on one row."""

    tenant: str
    row_id: str
    model_id: str
    fence: int
    request_id: str | None

    @property
    def subject(self) -> str:
        """What is held."""
        return self.row_id


class LeasedRows(Generic[Row]):
    """The rows of one table, as workers go about them."""

    def __init__(self, table: type[Row]) -> None:
        self.table = table

    def claim(self, session: Session, *, worker: str, lease_seconds: float) -> RowClaim | None:
        """Claims the next row to work on, or returns None. Needs a worker session that sees every tenant."""
        row = session.scalar(self._queue())
        if row is None:
            return None
        row.state, row.fence, row.worker = LeasedState.SCORING, row.fence + 1, worker
        session.flush()
        claim = RowClaim(row.tenant_id, row.id, row.model_id, row.fence, row.request_id)
        self.renew(session, claim=claim, lease_seconds=lease_seconds)
        return claim

    def _queue(self) -> Any:
        """Tenants take turns: fewest rows at work first, then whoever asked first. Rows that another is claiming are passed over."""
        table, other = self.table, aliased(self.table)
        at_work = select(func.count()).where(
            other.tenant_id == table.tenant_id, other.state == LeasedState.SCORING
        )
        return (
            select(table)
            .where(*self._due())
            .order_by(at_work.scalar_subquery(), table.requested_at, table.id)
            .limit(1)
            .with_for_update(of=table, skip_locked=True)
            .execution_options(populate_existing=True)
        )

    def _due(self) -> tuple[ColumnElement[bool], ...]:
        later = self.table.next_attempt_at
        return (self.table.state == LeasedState.QUEUED, or_(later.is_(None), later <= func.now()))

    def waiting(self, session: Session) -> bool:
        """Says whether any row could be claimed now. Needs a session that sees every tenant."""
        return session.scalar(select(self.table.id).where(*self._due()).limit(1)) is not None

    def unfinished(self, session: Session, *, ids: Iterable[str]) -> set[str]:
        """Returns which of these ids are of rows yet to be finished. Needs a session that sees every tenant."""
        states = (LeasedState.QUEUED, LeasedState.SCORING)
        wanted = select(self.table.id).where(among(self.table.id, ids), self.table.state.in_(states))
        return set(session.scalars(wanted))

    def renew(
        self,
        session: Session,
        *,
        claim: RowClaim,
        lease_seconds: float,
        progress: Mapping[str, Any] | None = None,
    ) -> LeaseState:
        """Extends the lease, and writes the progress where the table has a place for it; tells whether the claim still holds."""
        values: dict[str, Any] = {"lease_expires_at": from_now(lease_seconds)}
        if progress is not None and "progress" in self.table.__table__.columns:  # type: ignore[attr-defined]  # every leased row is a table's
            values["progress"] = dict(progress)
        return LeaseState(held=self._write(session, claim, **values), cancel_requested=False)

    def hold(self, session: Session, *, claim: RowClaim) -> Row | None:
        """Locks the claimed row to the transaction's end and returns it; None when the claim is lost."""
        return session.scalar(
            select(self.table)
            .where(*self._held_by(claim))
            .with_for_update()
            .execution_options(populate_existing=True)
        )

    def finish(self, session: Session, *, claim: RowClaim, **values: Any) -> bool:
        """Ends a row whose work is all done; False when the claim is lost."""
        return self._leave(
            session, claim, state=LeasedState.DONE, finished_at=func.now(), error=None, **values
        )

    def give_back(self, session: Session, *, claim: RowClaim) -> bool:
        """Returns a row to the queue without using up an attempt: the worker is stopping. False when the claim is lost."""
        return self._leave(session, claim, state=LeasedState.QUEUED)

    def fail(
        self, session: Session, *, claim: RowClaim, code: str, message: str, final: bool = False
    ) -> LeasedState | None:
        """Counts a failed attempt: the row waits for the next while attempts are left, else it fails. None: the claim is lost."""
        row = self.hold(session, claim=claim)
        if row is None:
            return None
        wait_seconds = seconds_before_retry(row.attempts_used)
        return use_attempt(session, row, code=code, message=message, final=final, wait_seconds=wait_seconds)

    def sweep(self, session: Session) -> list[str]:
        """Takes back every row whose lease has expired; returns their ids. Needs a session that sees every tenant."""
        expired = (self.table.state == LeasedState.SCORING, self.table.lease_expires_at < func.now())
        rows = session.scalars(select(self.table).where(*expired).with_for_update(skip_locked=True)).all()
        for row in rows:
            message = f"the worker {row.worker} stopped renewing its lease; it was killed, hung, or cut off from the database"
            use_attempt(session, row, code="lease_expired", message=message)
        return [row.id for row in rows]

    def _held_by(self, claim: RowClaim) -> tuple[ColumnElement[bool], ...]:
        table = self.table
        return (table.id == claim.row_id, table.fence == claim.fence, table.state == LeasedState.SCORING)

    def _leave(self, session: Session, claim: RowClaim, **values: Any) -> bool:
        return self._write(session, claim, worker=None, lease_expires_at=None, **values)

    def _write(self, session: Session, claim: RowClaim, **values: Any) -> bool:
        statement = update(self.table).where(*self._held_by(claim)).values(**values)
        return session.execute(statement.returning(self.table.id)).one_or_none() is not None


def use_attempt(
    session: Session,
    row: LeasedRow,
    *,
    code: str,
    message: str,
    final: bool = False,
    wait_seconds: float = 0.0,
) -> LeasedState:
    """Counts an attempt against a row that the session has locked, and returns where it stands then."""
    used = row.attempts_used + 1
    failed = final or used >= row.max_attempts
    row.state = LeasedState.FAILED if failed else LeasedState.QUEUED
    row.attempts_used, row.worker, row.lease_expires_at = min(used, row.max_attempts), None, None
    row.error = {"code": code, "message": message, "attempt": used}
    row.finished_at = session.scalar(select(func.now())) if failed else None
    row.next_attempt_at = (
        session.scalar(select(from_now(wait_seconds))) if wait_seconds and not failed else None
    )
    session.flush()
    return LeasedState(row.state)
