"""What commands print: the API's JSON, or tables in which no text can act on the terminal."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 160
# Control characters move the cursor or rewrite what stands there; the others turn the direction of reading.
HARMFUL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


def console() -> Console:
    """Where answers go."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def messages() -> Console:
    """Where progress and remarks go, so that they never mix with answers."""
    return Console(highlight=False, stderr=True, soft_wrap=True)


def plain(text: str) -> str:
    """The text on one line, without anything that acts on a terminal."""
    return HARMFUL.sub(" ", text)


def print_json(document: object) -> None:
    """Prints a document as the API sent it."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))


def remark(text: str) -> None:
    """Says something beside the answer, on standard error."""
    typer.echo("\n".join(plain(line) for line in text.splitlines()), err=True)


def cell(value: object) -> Text:
    """A value as it stands in a table."""
    if isinstance(value, Text):
        return value
    if value is None or value == "" or value == []:
        return Text("–", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    if isinstance(value, dict):
        return Text(plain(json.dumps(value, ensure_ascii=False)))
    if isinstance(value, (list, tuple)):
        return Text(", ".join(plain(str(item)) for item in value))
    return Text(plain(str(value)))


def moment(text: str | None) -> str | None:
    """A time of the API to the second."""
    return text and f"{text[:10]} {text[11:19]}Z"


def shortened(text: str, length: int = 80) -> str:
    """The beginning of a text."""
    line = plain(text)
    return line if len(line) <= length else f"{line[: length - 1]}…"


def fixed(value: float | None, digits: int = 3) -> str | None:
    """A score, so that the points of a column stand below each other."""
    return None if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str | None:
    """A change with its sign."""
    return None if value is None else f"{value:+.{digits}f}"


def size(number: int) -> str:
    """A number of bytes in the unit that suits it."""
    amount = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None, right: Iterable[str] = ()
) -> None:  # fmt: skip
    """Prints rows below their headings; `right` names the columns of numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    console().print(table)


def print_gap() -> None:
    """Sets what follows apart."""
    typer.echo()


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Prints names and values of one thing, one below the other."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, cell(value))
    console().print(grid)


def print_list(
    page: dict[str, Any], columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()
) -> None:  # fmt: skip
    """Prints a page as a table, and says when there are more rows."""
    print_table(columns, rows, right=right)
    if page["has_more"]:
        remark(f"These are the first {len(page['data'])}; a higher --limit shows more.")
