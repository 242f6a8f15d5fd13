"""What went wrong with an attempt, and whether another one may mend it."""

import psycopg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from workers.training.errors import TrainingFailed

DATABASE_ERRORS = (OperationalError, InterfaceError, PoolTimeout)
AWAY_STATES = ("08", "57P", "53300")  # connection exceptions, shutdowns, too many connections
# What another attempt may mend: a full disk, a lost device, a worker that lacks what another one has.
MAY_PASS = {
    "internal_error", "out_of_memory", "no_progress", "base_model_missing", "base_model_mismatch", "too_few_devices",
    "device_lost", "database_error", "work_folder_unwritable", "artifact_store_unavailable",
}  # fmt: skip
# Met while recording: an example erased in that moment, or two transactions in each other's way. Worth another round.
PASSING = (
    psycopg.errors.IntegrityError,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)


def is_away(error: Exception) -> bool:
    """Says whether the database could not be reached, rather than refused what it was asked."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    return state is None or state.startswith(AWAY_STATES)


def refused(error: Exception) -> TrainingFailed:
    """Returns what an attempt fails with when the database refused something."""
    reason = str(getattr(error, "orig", error)).splitlines()[0]
    return TrainingFailed("database_error", f"the database could not do what it was asked: {reason}")
