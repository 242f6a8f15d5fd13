"""Lines: a sparkline without axes, and the loss curve of a training."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from service.web.charts.axes import Axis, axis_over
from service.web.charts.svg import ACCENT, MARGIN, add, drawing, finished, number, rule, write

SPARK_WIDTH, SPARK_HEIGHT = 132, 30
CURVE_WIDTH, CURVE_HEIGHT = 560, 200
LEFT, BOTTOM = 52, 34


def sparkline(values: Sequence[float], *, label: str) -> str:
    """Returns the course of values as a small line whose last point is marked."""
    root = drawing(SPARK_WIDTH, SPARK_HEIGHT, label=label)
    if values:
        x = Axis(0, max(len(values) - 1, 1), 5, SPARK_WIDTH - 6)
        y = axis_over(values, start=SPARK_HEIGHT - 4, end=4)
        points = [(x.at(place), y.at(value)) for place, value in enumerate(values)]
        _line(root, points)
        _dot(root, *points[-1])
    return finished(root)


def loss_curve(points: Sequence[tuple[float, float]], *, total_steps: int = 0) -> str:
    """Returns the loss over the steps of a training, `points` being (step, mean loss up to it).

    There is room for `total_steps`, of a training that still goes.
    """
    root = drawing(CURVE_WIDTH, CURVE_HEIGHT, label=_in_words(points))
    x = Axis(0, max([1.0, total_steps, *(step for step, _ in points)]), LEFT, CURVE_WIDTH - 2 * MARGIN)
    y = axis_over([0.0, *(loss for _, loss in points)], start=CURVE_HEIGHT - BOTTOM, end=MARGIN)
    for mark in y.marks(4):
        rule(root, LEFT, y.at(mark), CURVE_WIDTH - 2 * MARGIN, y.at(mark))
        write(root, LEFT - 6, y.at(mark), f"{mark:g}", ink="faint", anchor="end")
    for mark in x.marks(6):
        write(root, x.at(mark), CURVE_HEIGHT - BOTTOM + 14, f"{mark:g}", ink="faint", anchor="middle")
    write(root, CURVE_WIDTH - 2 * MARGIN, CURVE_HEIGHT - 8, "step", ink="faint", anchor="end")
    _line(root, [(x.at(step), y.at(loss)) for step, loss in points])
    for step, loss in points[-1:]:
        _dot(root, x.at(step), y.at(loss))
    return finished(root)


def _dot(root: Element, x: float, y: float) -> None:
    add(root, "circle", {"cx": x, "cy": y, "r": 3, "fill": ACCENT, "class": "accent"})


def _in_words(points: Sequence[tuple[float, float]]) -> str:
    if not points:
        return "Loss curve: no steps"
    return f"Loss curve over {points[-1][0]:g} steps, from {points[0][1]:.3g} to {points[-1][1]:.3g}"


def _line(root: Element, points: Sequence[tuple[float, float]]) -> None:
    place = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    add(
        root,
        "polyline",
        {"points": place, "fill": "none", "stroke": ACCENT, "stroke-width": 1.6, "class": "stroke-accent"},
    )
