"""Alembic's environment: runs migrations on the database that `palimpsest migrate` names, while the service runs.

A change of a table waits for every transaction that uses it, and everybody who comes later waits behind the change. So it
waits for a moment only, lets the others pass, and tries again. The moment is shorter than Postgres's `deadlock_timeout` of
one second: where a request holds one of the tables and waits for another, the migration gives way, not the request, unless it
asks for its tables more than half a second apart.
"""

import sys
import time

from alembic import context
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, create_engine, pool, text
from sqlalchemy.exc import OperationalError

from service.config import get_settings
from service.db import driver_url
from service.models import Base

LOCK = 7_210_310_001  # any constant: two migrating processes must not interleave
LOCK_TIMEOUT = "500ms"  # how long a migration may stop the service
PAUSE_SECONDS = 3.0
PATIENCE_SECONDS = (
    1200.0  # longer than any transaction: loading a body and recording a version may take ten minutes
)


def run() -> None:
    """Runs the migrations, each in a transaction of its own, one migrating process at a time."""
    url = context.config.attributes.get("database_url") or get_settings().database_url
    engine = create_engine(driver_url(url), poolclass=pool.NullPool, connect_args={"connect_timeout": 10})
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})  # until it disconnects
        connection.execute(text("SELECT set_config('lock_timeout', :limit, false)"), {"limit": LOCK_TIMEOUT})
        connection.commit()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not migrate(connection, last_try=time.monotonic() > deadline):
            sys.stderr.write("The tables are in use; the migration tries again in a moment.\n")
            time.sleep(PAUSE_SECONDS)


def migrate(connection: Connection, *, last_try: bool) -> bool:
    """Runs what is left of the migrations; False when a lock was not to be had, and nothing of that revision was done."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=False,
        transaction_per_migration=True,
    )
    try:
        with context.begin_transaction():
            context.run_migrations()
    except OperationalError as error:
        connection.rollback()
        if last_try or not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
            raise
        return False
    return True


run()
