"""What a tenant may store, where the operator set a limit.

Rows are counted when a body is stored, not kept count of: deletion, erasure and purge need no bookkeeping, and a tenant
without a limit pays nothing. With one, an ingest counts the tenant's rows: 0.1 s per 200,000, 0.3 s where bytes are limited too.
"""

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from service.config import get_settings
from service.errors import QuotaExceeded
from service.models import Example

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('quota:' || :tenant, 0))"


def check_quota(session: Session, *, tenant: str) -> None:
    """Raises `QuotaExceeded` when the tenant's examples, those of this transaction too, are over a limit.

    Counts every stored row, corrected ones too, and the bytes that content and metadata take on disk. Bodies of
    one tenant wait for each other from here to their commit, so that together they cannot pass the limit.
    """
    settings = get_settings()
    most_rows, most_bytes = settings.max_examples_per_tenant, settings.max_example_bytes_per_tenant
    if most_rows is None and most_bytes is None:
        return
    session.execute(text(LOCK), {"tenant": tenant})
    rows, size = _usage(session, tenant=tenant, measure=most_bytes is not None)
    if most_rows is not None and rows > most_rows:
        raise _exceeded(f"{rows} examples", f"{most_rows} examples", rows - most_rows, "examples")
    if most_bytes is not None and size > most_bytes:
        raise _exceeded(f"{size} bytes of examples", f"{most_bytes} bytes", size - most_bytes, "bytes")


def _usage(session: Session, *, tenant: str, measure: bool) -> tuple[int, int]:
    # Of single columns, for the size of a whole row would be taken from disk and unpacked.
    columns = [
        func.coalesce(func.pg_column_size(part), 0) for part in (Example.content, Example.user_metadata)
    ]
    size = func.coalesce(func.sum(columns[0] + columns[1]), 0) if measure else text("0")
    counted = select(func.count(), size).select_from(Example).where(Example.tenant_id == tenant)
    rows, taken = session.execute(counted).one()
    return int(rows), int(taken)


def _exceeded(would_be: str, limit: str, over: int, unit: str) -> QuotaExceeded:
    return QuotaExceeded(
        f"With this body the tenant would store {would_be}; its limit is {limit}, {over} {unit} fewer. Nothing of it was "
        "stored. Delete examples or ask the operator for more room.",
        param="body",
    )
