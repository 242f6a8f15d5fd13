"""Lengths of time as people write them."""

import re
from datetime import timedelta

import typer

DURATION = re.compile(r"(\d{1,5})([hdw])")
UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str, *, option: str = "--expires-in") -> timedelta:
    """The length of time a text such as 12h, 90d or 52w stands for.

    Raises:
        typer.BadParameter: the text is none of these.
    """
    match = DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"'{text}' is no length of time; write 12h, 90d or 52w", param_hint=option)
    return timedelta(**{UNITS[match[2]]: int(match[1])})
