"""Backup and restore of everything the service knows."""

import os
from pathlib import Path
from typing import Annotated

import typer

from service.cli.installation import OfState, take_settings_of

app = typer.Typer()


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Where to; a new or empty folder.")],
    state: OfState = None,
    artifacts: Annotated[
        bool,
        typer.Option(help="Copy the artifacts too; leave them out where the store is kept safe otherwise."),
    ] = True,
) -> None:
    """Back up the database and the artifacts of a running service.

    Of a running `palimpsest up` (give its `--state` folder), or of what `DATABASE_URL` and `ARTIFACT_URL` name. The folder
    holds everything the service knows, with `--state` its secrets too: keep it as safe as the service itself.
    """
    take_settings_of(state)
    from service.backup import take_backup
    from service.config import get_settings
    from service.embedded.state import StateFolder, read_running

    if state is not None:
        os.environ.setdefault("ARTIFACT_URL", StateFolder(state).artifacts.as_uri())
    settings = get_settings()
    take_backup(
        folder, database_url=settings.database_url, artifact_url=settings.artifact_url, with_artifacts=artifacts,
        secrets=read_running(state)[1] if state is not None else None, say=typer.echo,
    )  # fmt: skip


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="The backup.")],
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default=False, help="A new state folder; `palimpsest up` runs from it then."
        ),
    ] = None,
) -> None:
    """Restore a backup into a new state folder, or into the empty database and the store of `DATABASE_URL` and `ARTIFACT_URL`."""
    from service.backup import restore_backup, restore_into_state
    from service.config import get_settings

    if state is not None:
        restore_into_state(folder, state, say=typer.echo)
        return
    settings = get_settings()
    restore_backup(
        folder, database_url=settings.database_url, artifact_url=settings.artifact_url, say=typer.echo
    )
