"""The audit over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select

from service.audit.schemas import AuditEntryRead
from service.dependencies import Admin, Page, PageDep, SessionDep, page_of
from service.models import AuditAction, AuditEntry

router = APIRouter(tags=["Audit"])


@router.get("/audit", summary="Who did what, and when")
def list_audit(
    _principal: Admin,
    session: SessionDep,
    page: PageDep,
    action: Annotated[AuditAction | None, Query(description="Only this kind of act")] = None,
) -> Page[AuditEntryRead]:
    """Lists what was done to keys, gates, champions and data, newest first. The list is append-only."""
    statement = select(AuditEntry)
    if action is not None:
        statement = statement.where(AuditEntry.action == action.value)
    entries, cursor = page.select(session, statement, key=AuditEntry.id, newest_first=True)
    return Page[AuditEntryRead](**page_of([_read(entry) for entry in entries], cursor))


def _read(entry: AuditEntry) -> AuditEntryRead:
    return AuditEntryRead(
        id=entry.id, at=entry.at, actor=entry.actor, key_id=entry.key_id, action=entry.action,
        target=entry.target, data=entry.data,
    )  # fmt: skip
