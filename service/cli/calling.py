"""Commands that call the API: the options they all have, and how they end when a call fails."""

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from service.cli.connecting import connect
from service.cli.output import print_json, remark
from service.cli.problems import CallFailed

if TYPE_CHECKING:
    from service.cli.client import Api

P = ParamSpec("P")
Json = dict[str, Any]
DEFAULT_LIMIT = 1000

Profile = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", show_default=False, help="Profile of `palimpsest login`.")
]  # fmt: skip
State = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", show_default=False, help="State folder of a running `palimpsest up`."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the API's JSON, for scripts.")]
SHARED = {"profile": (Profile, None), "state": (State, None), "as_json": (AsJson, False)}

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name or id of the model.")]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Name of the task.")]
UpdateId = Annotated[str, typer.Argument(metavar="UPDATE", help="Id of the update, `upd_…`.")]
VersionName = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="Number of the version, or an alias such as `champion`."),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many rows at most.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True, slots=True)
class Call:
    """What a command works with: the API, and how its answers are printed."""

    api: "Api"
    as_json: bool

    def show(self, document: Json, view: Callable[[Json], None]) -> None:
        """Prints an answer: as it is for `--json`, else by its view."""
        if not self.as_json:
            view(document)
        elif document:  # nothing to print for an answer without a body
            print_json(document)

    def say(self, text: str) -> None:
        """Prints a sentence about what was done, where no JSON is wanted."""
        if not self.as_json:
            typer.echo(text)


@contextmanager
def calling(*, profile: str | None, state: Path | None, as_json: bool) -> Iterator[Call]:
    """Opens the API for a command; a failed call is told on standard error and becomes the exit code."""
    try:
        with connect(profile=profile, state=state) as api:
            yield Call(api, as_json)
    except CallFailed as failure:
        if as_json and failure.document is not None:
            typer.echo(json.dumps(failure.document, ensure_ascii=False), err=True)
        else:
            remark(f"palimpsest: error: {failure}")
        raise typer.Exit(failure.exit_code) from None


def over_http(
    group: typer.Typer, name: str | None = None
) -> Callable[[Callable[Concatenate[Call, P], None]], Callable[Concatenate[Call, P], None]]:
    """Registers a function as a command of `group`: it gets a `Call` first, and the command the shared options."""

    def register(function: Callable[Concatenate[Call, P], None]) -> Callable[Concatenate[Call, P], None]:
        group.command(name)(_command(function))
        return function

    return register


def _command(function: Callable[Concatenate[Call, P], None]) -> Callable[..., None]:
    @functools.wraps(function)
    def command(**given: Any) -> None:
        shared = {name: given.pop(name) for name in SHARED}
        with calling(**shared) as call:
            function(call, **given)  # type: ignore[call-arg]  # typer passes by name what the signature asks for

    own = list(inspect.signature(function).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in SHARED.items()
    ]
    parameters = [*(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own), *added]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def confirm(question: str, *, yes: bool) -> None:
    """Asks before what cannot be undone; anything but a yes ends the command."""
    if not yes:
        typer.confirm(question, abort=True, err=True)


def version_number(call: Call, model: str, version: str) -> int:
    """The number of a version that is named by number or by alias."""
    from service.cli.client import path

    if version.isdecimal():
        return int(version)
    return int(call.api.get(path("models", model, "aliases", version))["version"])
