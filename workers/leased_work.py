"""How a worker goes about a leased row: from its claim to a state that says how far it came."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from structlog import get_logger
from structlog.contextvars import bound_contextvars

from service.db import session_scope
from service.leased_rows import LeasedRows, RowClaim
from workers.failures import DATABASE_ERRORS, described, is_away, refused
from workers.lease import Lease, LeaseLost
from workers.training.errors import Cancelled, Stopped
from workers.workspace import leave_workspace, work_root

log = get_logger(__name__)

Work = Callable[[RowClaim, Lease, Path], None]
"""Does what the row asks for and ends it, in a scratch folder of its own."""


def carry(rows: LeasedRows[Any], claim: RowClaim, work: Work, *, stopping: threading.Event) -> None:
    """Carries one claimed row as far as it goes, and leaves it in a state that says how far that was."""
    table = rows.table.__tablename__
    context = {
        "tenant": claim.tenant, table.removesuffix("s"): claim.row_id, "fence": claim.fence, "request_id": claim.request_id,
    }  # fmt: skip
    folder = work_root() / claim.row_id / str(claim.fence)
    with bound_contextvars(**context), Lease(claim, stopping=stopping, renew=rows.renew) as lease:
        log.info("row_claimed", table=table)
        try:
            _attempt(rows, claim, work, lease, folder)
        except DATABASE_ERRORS as error:
            # The sweeper takes the row back when the lease runs out; until then nothing can be written anyway.
            log.warning("database_failed", error=str(error).splitlines()[0])
    leave_workspace(folder, keep=False)


def _attempt(rows: LeasedRows[Any], claim: RowClaim, work: Work, lease: Lease, folder: Path) -> None:
    try:
        leave_workspace(folder, keep=False)  # what attempts before this one left
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        work(claim, lease, folder)
    except (LeaseLost, Cancelled):  # whoever cancels such a row takes the claim with it
        log.warning("lease_lost")
    except Stopped:
        with session_scope(tenant=claim.tenant, role="worker") as session:
            rows.give_back(session, claim=claim)
    except DATABASE_ERRORS as error:
        if is_away(error):
            raise
        _fail(rows, claim, refused(error))
    except Exception as error:
        _fail(rows, claim, error)


def _fail(rows: LeasedRows[Any], claim: RowClaim, error: Exception) -> None:
    """Counts the failed attempt; an error that another attempt cannot mend fails the row at once."""
    failure = described(error)
    log.error(
        "row_failed",
        code=failure.code,
        error=failure.message,
        exc_info=error if failure.unexpected else None,
    )
    with session_scope(tenant=claim.tenant, role="worker") as session:
        rows.fail(session, claim=claim, code=failure.code, message=failure.message, final=failure.final)
