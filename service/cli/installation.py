"""The database of a running `palimpsest up`, for commands that act on it."""

import os
from pathlib import Path
from typing import Annotated

import typer

OfState = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", show_default=False,
        help="State folder of a running `palimpsest up`; default: the database that DATABASE_URL names.",
    ),
]  # fmt: skip


def take_settings_of(state: Path | None) -> None:
    """Act on the database, and under the pepper, of a running `palimpsest up`."""
    if state is None:
        return
    from service.embedded.state import read_running

    connection, secrets = read_running(state)
    os.environ["DATABASE_URL"] = connection.database_url
    os.environ["PALIMPSEST_KEY_PEPPER"] = secrets.key_pepper
