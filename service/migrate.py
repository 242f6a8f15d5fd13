"""Brings a database to the schema of a release."""

from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import migrations


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration for one database."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str, *, revision: str = "head") -> None:
    """Migrates the database up to `revision`. The login needs CREATEROLE once, for the roles of the service."""
    command.upgrade(alembic_config(database_url), revision)


def downgrade(database_url: str, *, revision: str) -> None:
    """Migrates the database down to `revision`; what later revisions added is dropped, data included."""
    command.downgrade(alembic_config(database_url), revision)


@lru_cache
def revisions() -> tuple[str, ...]:
    """The revisions this release knows, oldest first; the last one is its schema."""
    script = ScriptDirectory.from_config(alembic_config(""))
    return tuple(step.revision for step in script.walk_revisions())[::-1]
