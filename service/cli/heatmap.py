"""The accuracy matrix as a heatmap in the terminal: numbers in every cell, colours that the colour-blind tell apart."""

from collections.abc import Sequence
from typing import Any

from rich.style import Style
from rich.table import Table
from rich.text import Text

from service.palette import as_hex, colour, legible_on, scale, share

Json = dict[str, Any]
WIDEST_NAME = 12
LEAST_WIDTH = 7
LEARNT = "•"


def heatmaps(report: Json, *, learnt: dict[int, set[str]], width: int) -> list[Table]:
    """The matrix of a forgetting report: a row per version, a column per task, in as many tables as the width takes.

    `learnt` names the tasks that each version learnt itself; their cells carry a dot.
    """
    low, high = scale(report["matrix"])
    widths = [max(LEAST_WIDTH, min(len(task), WIDEST_NAME)) for task in report["tasks"]]
    return [
        _table(report, columns, learnt=learnt, low=low, high=high, widths=widths)
        for columns in _blocks(widths, width=width - 6)
    ]


def _table(
    report: Json, columns: Sequence[int], *, learnt: dict[int, set[str]], low: float, high: float, widths: Sequence[int]
) -> Table:  # fmt: skip
    table = Table(box=None, padding=(0, 0), collapse_padding=True, header_style="bold")
    table.add_column("v", justify="right", width=4, no_wrap=True)
    tasks = [report["tasks"][column] for column in columns]
    for column, task in zip(columns, tasks, strict=True):
        table.add_column(task, justify="right", width=widths[column] + 1, overflow="fold")
    for version, row in zip(report["versions"], report["matrix"], strict=True):
        own = learnt.get(version, set())
        cells = (
            _cell(row[column], low=low, high=high, learnt=task in own, width=widths[column])
            for column, task in zip(columns, tasks, strict=True)
        )
        table.add_row(str(version), *cells)
    return table


def _cell(value: float | None, *, low: float, high: float, learnt: bool, width: int) -> Text:
    mark = LEARNT if learnt else " "
    if value is None:
        return Text(f"–{mark}".rjust(width), style="dim")
    background = colour(share(value, low=low, high=high))
    style = Style(color=as_hex(legible_on(background)), bgcolor=as_hex(background))
    return Text(f"{value:.2f}{mark}".rjust(width), style=style)


def _blocks(widths: Sequence[int], *, width: int) -> list[list[int]]:
    """Column numbers, cut where the next one would not fit any more."""
    blocks: list[list[int]] = [[]]
    used = 0
    for column, needed in enumerate(widths):
        if blocks[-1] and used + needed + 1 > width:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += needed + 1
    return blocks
