"""The end of artifacts: one is deleted when nothing refers to it, and never from under somebody who is about to.

They are shared by content, between tenants too. Whoever is to refer to one holds a share of its lock from before looking
whether it is there until the reference is committed; whoever deletes one takes the lock alone, and only then asks whether
anything refers to it. So what a committed row refers to is there, however the two meet.
"""

from collections.abc import Collection
from functools import partial

from sqlalchemy import ARRAY, Text, func, literal, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from structlog import get_logger

from service.artifacts import get_store
from service.db import Role, after_commit, session_scope

log = get_logger(__name__)

# The store may be slow, and the lock must last: longer than every call of it that a transaction waits for.
BE_PATIENT = text("SET LOCAL idle_in_transaction_session_timeout = '10min'")
PATIENT_NO_MORE = text("SET LOCAL idle_in_transaction_session_timeout TO DEFAULT")
HOLD = text("""
    SELECT pg_advisory_xact_lock_shared(hashtextextended('artifact:' || sha256, 0))
    FROM unnest(CAST(:hashes AS text[])) sha256
""")
TAKE = text("SELECT pg_try_advisory_xact_lock(hashtextextended('artifact:' || :sha256, 0))")


def hold_artifacts(session: Session, hashes: Collection[str]) -> bool:
    """Keeps artifacts from being deleted until the transaction has ended; says whether all of them are there.

    To be called before the transaction locks anything that others wait for. Raises `StoreUnavailable`.
    """
    session.execute(BE_PATIENT)
    session.execute(HOLD, {"hashes": list(hashes)})
    stored = all(get_store().holds(sha256) for sha256 in hashes)
    session.execute(PATIENT_NO_MORE)  # whoever is frozen with rows locked is to lose them soon
    return stored


def discard_artifacts(session: Session, hashes: Collection[str]) -> None:
    """Deletes, after the commit, those of these artifacts that nothing of any tenant refers to any more."""
    if hashes:
        after_commit(session, partial(_remove_all, frozenset(hashes), role=session.info["role"]))


def _remove_all(hashes: Collection[str], *, role: Role) -> None:
    for done, sha256 in enumerate(hashes):
        try:
            remove_unused(sha256, role=role)
        except (OSError, SQLAlchemyError) as error:
            # Each further one would make the caller wait as long. The sweeper of orphans takes them.
            log.warning("artifacts_not_deleted", left=len(hashes) - done, error=str(error).partition("\n")[0])
            return


def remove_unused(sha256: str, *, role: Role, older_than_seconds: float = 0.0) -> bool:
    """Deletes an artifact unless something refers to it, is about to, or it is younger than that; says whether it did.

    It waits for nobody: what is held now is left to the sweeper of orphans. Raises OSError.
    """
    store = get_store()
    with session_scope(role=role) as session:
        session.execute(BE_PATIENT)
        if not session.scalar(TAKE, {"sha256": sha256}) or artifacts_in_use(session, [sha256]):
            return False
        if older_than_seconds and store.age_seconds(sha256) <= older_than_seconds:
            return False
        store.delete(sha256)
        return True


def artifacts_in_use(session: Session, hashes: Collection[str]) -> set[str]:
    """Returns those artifacts that a version or a waiting import of any tenant refers to."""
    wanted = literal(list(hashes), ARRAY(Text))
    return set(session.scalars(select(func.artifacts_in_use(wanted))))
