"""The palimpsest command with all of its commands."""

import sys
from typing import Annotated

import typer

from service.cli import (
    backups,
    champions,
    erasures,
    examples,
    forecasts,
    imports,
    inventory,
    keys,
    login,
    models,
    operating,
    reports,
    tasks,
    webhooks,
)
from service.cli.failures import expected

app = typer.Typer(
    name="palimpsest",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Palimpsest keeps a deployed model learning new tasks without losing the old ones.

    New here? Run `palimpsest up`. It starts everything on this machine (database, broker, API, one worker) with
    nothing to install by hand, and prints where the API listens and where its key lies. `api`, `worker`, `sweeper` and
    `migrate` run the parts one by one, for a deployment of your own.

    The others call the API of a running service: the one that `palimpsest login` keeps, or `PALIMPSEST_URL` with
    `PALIMPSEST_API_KEY`, or a `palimpsest up` on this machine (`--state DIR`). Each takes `--json`.

    **Exit codes**: 0 fine; 1 the API refused or the command is not possible; 2 wrong usage; of `update submit --wait`,
    `version blend --wait` and `update watch` 3 rejected, 4 failed or cancelled, 5 awaiting approval; 6 the service cannot be reached;
    7 there is nothing new to learn; 130 Ctrl-C.""",
)

OPERATING, CALLING = "Running the service", "Using a running service"

for group, panel in ((operating, OPERATING), (backups, OPERATING), (login, CALLING)):
    for command in group.app.registered_commands:
        command.rich_help_panel = panel
    app.add_typer(group.app)
for name, typers in (
    ("model", models.app), ("task", tasks.app), ("examples", examples.app), ("erasure", erasures.app), ("update", forecasts.app),
    ("version", imports.app), ("report", reports.report), ("gate", reports.gate), (None, champions.app),
    (None, inventory.app), ("strategies", inventory.strategies), ("keys", keys.app),
    ("webhook", webhooks.app),
):  # fmt: skip
    for command in typers.registered_commands if name is None else ():
        command.rich_help_panel = CALLING
    app.add_typer(typers, name=name, rich_help_panel=CALLING)


def _version(wanted: bool) -> None:
    if wanted:
        from service.version import VERSION

        typer.echo(f"palimpsest {VERSION}")
        raise typer.Exit


@app.callback()
def palimpsest(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that come before any command."""


def main() -> None:
    """Run the command line; an expected failure is one line on standard error and exit code 1."""
    try:
        app(prog_name="palimpsest")
    except Exception as error:
        message = expected(error)
        if message is None:
            raise
        typer.echo(f"palimpsest: error: {message}", err=True)
        sys.exit(1)
