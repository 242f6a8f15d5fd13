"""Documents from the command line: `--set training.epochs=5`."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

Json = dict[str, Any]

Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", show_default=False,
        help="Any further field of the API's document, with dots for those inside: `--set training.epochs=5`. The value "
        "is JSON, or text where it is none. May be repeated.",
    ),
]  # fmt: skip


def assigned(document: Json, assignments: Iterable[str] | None) -> Json:
    """The document with the fields that texts such as `training.epochs=5` assign.

    Raises:
        typer.BadParameter: a text is no assignment, or assigns inside of what is no object.
    """
    result: Json = json.loads(json.dumps(document))
    for text in assignments or ():
        name, equals, value = text.partition("=")
        parts = name.split(".")
        if not equals or not all(parts):
            raise typer.BadParameter(f"'{text}' is no assignment; write FIELD=VALUE", param_hint="--set")
        inner = result
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise typer.BadParameter(
                    f"'{part}' in '{name}' is a value and has no fields", param_hint="--set"
                )
        inner[parts[-1]] = _value(value)
    return result


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
