"""Dots and whiskers: the change on every task with its confidence interval, beside what the gate tolerates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element

from service.web.charts.axes import Axis, axis_over
from service.web.charts.svg import (
    ACCENT,
    MARGIN,
    WARNING,
    Value,
    add,
    drawing,
    explain,
    finished,
    rule,
    shortened,
    signed,
    write,
)

WIDTH, LABEL, NUMBERS = 760, 190, 172
ROW, HEAD, FOOT = 28, 30, 30
LONGEST_NAME = 24


@dataclass(frozen=True, slots=True)
class Change:
    """How the score on one task changed, and between which bounds."""

    task: str
    role: Literal["new", "old", "relearnt"]
    delta: float
    low: float
    high: float


def whiskers(changes: Sequence[Change], *, tolerated: float, before: str, after: str) -> str:
    """Returns the changes as dots with whiskers. Old tasks that may have lost more than `tolerated` are told apart.

    Old tasks are dots, new ones diamonds; the dashed line is the gate's bound, which concerns old tasks.
    """
    height = HEAD + ROW * max(len(changes), 1) + FOOT
    root = drawing(
        WIDTH, height, label=f"Change of the score on {len(changes)} tasks from {before} to {after}"
    )
    ends = [0.0, -tolerated, *(end for change in changes for end in (change.low, change.high))]
    axis = axis_over(ends, start=LABEL, end=WIDTH - NUMBERS, least=0.1)
    _frame(root, axis, height=height, tolerated=tolerated)
    for place, change in enumerate(changes):
        _row(root, axis, change, y=HEAD + ROW * (place + 0.5), tolerated=tolerated)
    return finished(root)


def _frame(root: Element, axis: Axis, *, height: float, tolerated: float) -> None:
    bottom = height - FOOT
    for mark in axis.marks(6):
        rule(root, axis.at(mark), HEAD, axis.at(mark), bottom)
        write(root, axis.at(mark), bottom + 12, signed(mark, 2), ink="faint", anchor="middle")
    add(root, "line", {
        "x1": axis.at(0), "y1": HEAD, "x2": axis.at(0), "y2": bottom, "stroke": "#1f2933", "class": "stroke-ink",
    })  # fmt: skip
    rule(root, axis.at(-tolerated), HEAD - 6, axis.at(-tolerated), bottom, dashed=True)
    write(
        root, axis.at(-tolerated) - 4, HEAD - 14, f"gate {signed(-tolerated, 3)}", ink="warning", anchor="end"
    )


def _row(root: Element, axis: Axis, change: Change, *, y: float, tolerated: float) -> None:
    suspect = change.role != "new" and change.low <= -tolerated
    ink, kind = (WARNING, "warning") if suspect else (ACCENT, "accent")
    line = add(root, "g", {})
    explain(line, f"{change.task} ({change.role}): {_numbers(change)}")
    write(line, MARGIN, y, shortened(change.task, LONGEST_NAME))
    stroke: dict[str, Value] = {"stroke": ink, "stroke-width": 1.8, "class": f"stroke-{kind}"}
    add(line, "line", {"x1": axis.at(change.low), "y1": y, "x2": axis.at(change.high), "y2": y, **stroke})
    for end in (change.low, change.high):
        add(line, "line", {"x1": axis.at(end), "y1": y - 4, "x2": axis.at(end), "y2": y + 4, **stroke})
    _dot(line, axis.at(change.delta), y, new=change.role == "new", fill=ink, kind=kind)
    write(line, WIDTH - MARGIN, y, _numbers(change), anchor="end", ink="warning" if suspect else "ink")


def _dot(line: Element, x: float, y: float, *, new: bool, fill: str, kind: str) -> None:
    if new:
        add(line, "path", {"d": f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z", "fill": fill, "class": kind})
    else:
        add(line, "circle", {"cx": x, "cy": y, "r": 4.5, "fill": fill, "class": kind})


def _numbers(change: Change) -> str:
    return f"{signed(change.delta, 3)}  [{signed(change.low, 3)}, {signed(change.high, 3)}]"
