"""What went wrong with an attempt, and whether another one may mend it."""

from dataclasses import dataclass

import psycopg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import ServiceError
from workers.training.errors import ChildDied, TrainingFailed, reason_of, unwritable_work_folder

DATABASE_ERRORS = (OperationalError, InterfaceError, PoolTimeout)
AWAY_STATES = ("08", "57P", "53300")  # connection exceptions, shutdowns, too many connections
# What another attempt may mend: a full disk, a lost device, a worker that lacks what another one has.
MAY_PASS = {
    "internal_error", "out_of_memory", "no_progress", "base_model_missing", "base_model_mismatch", "too_few_devices",
    "device_lost", "database_error", "work_folder_unwritable", "artifact_store_unavailable",
}  # fmt: skip
MOST_CHARACTERS = 2000  # of a message
# Met while recording: an example erased in that moment, or two transactions in each other's way. Worth another round.
PASSING = (
    psycopg.errors.IntegrityError,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What an attempt failed with, as it is recorded: `final` where another attempt cannot mend it."""

    code: str
    message: str
    final: bool
    unexpected: bool


def described(error: Exception) -> Failure:
    """Returns how an error that ended an attempt is recorded."""
    if isinstance(error, OSError):  # the store's come as errors of its own
        error = unwritable_work_folder(error) or error
    code = getattr(error, "code", None) or (
        "trainer_died" if isinstance(error, ChildDied) else "internal_error"
    )
    return Failure(
        code=code,
        message=recordable(
            error.message if isinstance(error, TrainingFailed) else reason_of(error) or type(error).__name__
        ),
        final=isinstance(error, TrainingFailed | ServiceError) and code not in MAY_PASS,
        unexpected=not isinstance(error, TrainingFailed | ServiceError | ChildDied | OSError),
    )


def recordable(message: str) -> str:
    """Returns a message as Postgres can hold it: NUL and halves of surrogate pairs written out, at most 2,000 characters.

    It may quote a stranger's file, and one that could not be recorded would leave its update as it is for ever.
    """
    written = message[:MOST_CHARACTERS].replace("\0", "\\x00").encode(errors="backslashreplace").decode()
    return (
        written
        if len(written) <= MOST_CHARACTERS and len(message) <= MOST_CHARACTERS
        else f"{written[: MOST_CHARACTERS - 1]}…"
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
