"""Brings a database to the newest schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config

import migrations


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration for one database."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str, *, revision: str = "head") -> None:
    """Migrates the database to `revision`. The login needs CREATEROLE once, for the roles of the service."""
    command.upgrade(alembic_config(database_url), revision)
