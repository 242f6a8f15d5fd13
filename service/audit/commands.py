"""Writing the audit: one entry per act, in the act's own transaction."""

from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from service.models import AuditAction, AuditEntry


def record(
    session: Session, *, tenant: str, actor: str, action: AuditAction, target: str, **data: Any
) -> None:
    """Appends an entry that commits with what it speaks of. `data` is JSON and holds nobody's texts or secrets.

    The key of a request is known by its session; see `session_scope`.
    """
    entry = {
        "tenant_id": tenant, "actor": actor, "key_id": session.info.get("key_id"),
        "action": action.value, "target": target, "data": data,
    }  # fmt: skip
    # Inline, so that nothing is read back: workers may add entries and see none.
    session.execute(insert(AuditEntry).values(entry).inline())
