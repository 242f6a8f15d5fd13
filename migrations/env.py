"""Alembic's environment: runs migrations on the database that `palimpsest migrate` names."""

from alembic import context
from sqlalchemy import create_engine, pool, text

from service.config import get_settings
from service.db import driver_url
from service.models import Base

LOCK = 7_210_310_001  # any constant: two migrating processes must not interleave


def run() -> None:
    """Runs the migrations in one transaction, one migrating process at a time."""
    url = context.config.attributes.get("database_url") or get_settings().database_url
    engine = create_engine(driver_url(url), poolclass=pool.NullPool, connect_args={"connect_timeout": 10})
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=False)
        with context.begin_transaction():
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            context.run_migrations()


run()
