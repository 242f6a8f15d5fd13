"""Stability against plasticity: what every version cost on old tasks, and how well it does on those it learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from service.web.charts.axes import Axis, axis_over
from service.web.charts.svg import (
    ACCENT,
    FAINT,
    MARGIN,
    WARNING,
    Value,
    add,
    drawing,
    explain,
    finished,
    rule,
    signed,
    write,
)

WIDTH, HEIGHT = 560, 360
LEFT, TOP, BOTTOM = 56, 26, 48
MOST_NAMED = 24  # versions whose numbers are all written


@dataclass(frozen=True, slots=True)
class TradeOff:
    """One version: its worst change on an old task against its parent, its mean score on what it learnt, and the verdict."""

    version: int
    worst_change: float
    new_score: float
    decision: str | None = None
    stands_out: str | None = None  # why its number is written: "champion", "this version"


def scatter(points: Sequence[TradeOff], *, tolerated: float, least_new: float | None) -> str:
    """Returns the versions as points, with the gate's bounds as dashed lines. A cross failed, a square is undecided."""
    root = drawing(WIDTH, HEIGHT, label=f"Stability against plasticity of {len(points)} versions")
    x = axis_over(
        [0.0, -tolerated, *(point.worst_change for point in points)],
        start=LEFT,
        end=WIDTH - 2 * MARGIN,
        least=0.1,
    )
    bounds = [] if least_new is None else [least_new]
    y = axis_over(
        [*bounds, *(point.new_score for point in points)], start=HEIGHT - BOTTOM, end=TOP, least=0.1
    )
    _frame(root, x, y)
    rule(root, x.at(-tolerated), TOP - 6, x.at(-tolerated), HEIGHT - BOTTOM, dashed=True)
    write(root, x.at(-tolerated) - 4, TOP - 14, f"gate {signed(-tolerated, 3)}", ink="warning", anchor="end")
    for bound in bounds:
        rule(root, LEFT, y.at(bound), WIDTH - 2 * MARGIN, y.at(bound), dashed=True)
    for point in points:
        _point(root, x.at(point.worst_change), y.at(point.new_score), point)
    _names(root, x, y, points)
    return finished(root)


def _frame(root: Element, x: Axis, y: Axis) -> None:
    bottom, right = HEIGHT - BOTTOM, WIDTH - 2 * MARGIN
    for mark in x.marks(6):
        rule(root, x.at(mark), TOP, x.at(mark), bottom)
        write(root, x.at(mark), bottom + 13, signed(mark, 2), ink="faint", anchor="middle")
    for mark in y.marks(5):
        rule(root, LEFT, y.at(mark), right, y.at(mark))
        write(root, LEFT - 6, y.at(mark), f"{mark:.2f}".replace("-", "−"), ink="faint", anchor="end")
    write(root, right, HEIGHT - 14, "stability: worst change on an old task →", ink="faint", anchor="end")
    write(root, 14, TOP, "plasticity: mean score on the tasks learnt →", ink="faint", anchor="end",
          transform=f"rotate(-90 14 {TOP})")  # fmt: skip


def _names(root: Element, x: Axis, y: Axis, points: Sequence[TradeOff]) -> None:
    """Writes the numbers of versions beside their points, together where they share one; of many, only those that stand out."""
    shown = points if len(points) <= MOST_NAMED else [point for point in points if point.stands_out]
    places: dict[tuple[int, int], list[TradeOff]] = {}
    for point in shown:
        places.setdefault((round(x.at(point.worst_change)), round(y.at(point.new_score))), []).append(point)
    for (left, top), together in places.items():
        bold: dict[str, Any] = {"font_weight": 600} if any(point.stands_out for point in together) else {}
        write(root, left + 11, top - 9, ", ".join(f"v{point.version}" for point in together), **bold)


def _point(root: Element, x: float, y: float, point: TradeOff) -> None:
    mark = add(root, "g", {})
    words = f"version {point.version}: worst change {signed(point.worst_change, 3)}, new tasks {point.new_score:.3f}"
    explain(mark, ", ".join(filter(None, (words, point.decision, point.stands_out))))
    if point.decision == "fail":
        stroke: dict[str, Value] = {"stroke": WARNING, "stroke-width": 2, "class": "stroke-warning"}
        add(mark, "path", {"d": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", **stroke})
    elif point.decision == "inconclusive":
        add(mark, "rect", {"x": x - 4, "y": y - 4, "width": 8, "height": 8, "fill": FAINT, "class": "faint"})
    else:
        add(mark, "circle", {"cx": x, "cy": y, "r": 4.5, "fill": ACCENT, "class": "accent"})
    if point.stands_out:
        add(mark, "circle", {
            "cx": x, "cy": y, "r": 9, "fill": "none", "stroke": ACCENT, "stroke-width": 1.5, "class": "stroke-accent",
        })  # fmt: skip
