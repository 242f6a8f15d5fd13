"""What counts as a database that is away, and what as one that refuses."""

import psycopg
import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from workers.failures import is_away, refused


def raised(error: psycopg.Error, *, lost: bool = False) -> OperationalError:
    """The error as SQLAlchemy raises it."""
    return OperationalError("SELECT", None, error, connection_invalidated=lost)


@pytest.mark.parametrize(
    "error",
    [
        PoolTimeout("no connection came"),
        raised(psycopg.OperationalError("connection refused")),
        raised(psycopg.errors.AdminShutdown("shutting down")),
        raised(psycopg.errors.TooManyConnections("too many")),
        raised(psycopg.errors.QueryCanceled("cancelled"), lost=True),
    ],
    ids=["pool", "refused", "shutdown", "crowded", "lost"],
)
def test_a_database_that_cannot_be_reached_is_waited_out(error: Exception) -> None:
    assert is_away(error)


@pytest.mark.parametrize(
    "error", [psycopg.errors.QueryCanceled, psycopg.errors.DiskFull, psycopg.errors.LockNotAvailable]
)
def test_a_database_that_refuses_costs_the_attempt_and_says_why(error: type[psycopg.Error]) -> None:
    wrapped = raised(error("canceling statement due to statement timeout"))
    assert not is_away(wrapped)
    failed = refused(wrapped)
    assert failed.code == "database_error"
    assert failed.message.endswith("asked: canceling statement due to statement timeout")
