"""`palimpsest login`: keep the address and the key of a service."""

import sys
from typing import Annotated

import typer

from service.cli.output import remark
from service.cli.problems import CallFailed, Problem
from service.cli.profiles import DEFAULT, Target, keep_profile

app = typer.Typer()


@app.command("login")
def log_in(
    url: Annotated[str, typer.Option(help="Address of the service, such as http://127.0.0.1:8000")],
    profile: Annotated[str, typer.Option(metavar="NAME", help="Name to keep it under.")] = DEFAULT,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="-", show_default="asked for",
            help="`-` reads the key from standard input. Others on this machine can see a key that is written here: leave "
            "it away, then `PALIMPSEST_API_KEY` is taken, or it is asked for.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Keep the address and the API key of a service in a file that only you may read, once the service knows the key."""
    try:
        target = Target(url=url, api_key=_key(api_key), source="palimpsest login")
        _try_out(target)
        kept = keep_profile(profile, target)
    except CallFailed as failure:
        remark(f"palimpsest: error: {failure}")
        raise typer.Exit(failure.exit_code) from None
    typer.echo(f"The profile '{profile}' is in {kept}.")


def _key(given: str | None) -> str:
    from service.config import ClientSettings

    if given == "-":
        return sys.stdin.readline().strip()
    if given is not None:
        return given
    of_environment = ClientSettings().api_key
    if of_environment is not None:
        return of_environment.get_secret_value().strip()
    return str(typer.prompt("API key", hide_input=True, err=True)).strip()


def _try_out(target: Target) -> None:
    from service.cli.client import Api
    from service.config import ClientSettings

    with Api(target, patience_seconds=ClientSettings().patience_seconds) as api:
        try:
            api.get("/v1/models", limit=1)
        except Problem as refused:
            if refused.status != 403:  # a key that may not read is a key all the same
                raise
