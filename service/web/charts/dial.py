"""The dial: each task's score on the way from the parent (β = 0) to the version (β = 1), between its bounds.

Every task has a picture of its own, all on one scale: however many there are, none is told from another by its colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from service.web.charts.axes import Axis, axis_over
from service.web.charts.svg import (
    ACCENT,
    MARGIN,
    add,
    drawing,
    explain,
    finished,
    number,
    rule,
    shortened,
    write,
)

ABREAST = 4
PANEL_WIDTH, PANEL_HEIGHT = 178, 138
LEFT, GAP, HEAD, FOOT = 46, 22, 28, 22
LONGEST_NAME = 22
LEAST_SPAN = 0.1  # of the scores: a nearly flat course is drawn nearly flat


@dataclass(frozen=True, slots=True)
class Reading:
    """A score at one β, and its bounds where it has any."""

    beta: float
    score: float
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """One task's scores over β. `part` says what the task is to the update: old, new, relearnt."""

    name: str
    part: str
    readings: Sequence[Reading]


def dial_curves(courses: Sequence[Course], *, label: str, recommended: float | None = None) -> str:
    """Returns one small picture per course, side by side; a dashed line stands at the recommended β."""
    abreast = min(ABREAST, max(len(courses), 1))
    lines = -(-len(courses) // ABREAST)
    root = drawing(LEFT + abreast * (PANEL_WIDTH + GAP), max(lines, 1) * PANEL_HEIGHT + MARGIN, label=label)
    y = axis_over(_extent(courses), start=PANEL_HEIGHT - FOOT, end=HEAD, least=LEAST_SPAN)
    for place, course in enumerate(courses):
        line, column = divmod(place, ABREAST)
        where = f"translate({LEFT + column * (PANEL_WIDTH + GAP)} {line * PANEL_HEIGHT})"
        panel = add(root, "g", {"transform": where})
        _panel(panel, course, y, recommended=recommended, is_first=column == 0)
    return finished(root)


def _extent(courses: Sequence[Course]) -> list[float]:
    readings = [reading for course in courses for reading in course.readings]
    bounds = [bound for reading in readings for bound in reading.bounds or ()]
    return [*(reading.score for reading in readings), *bounds]


def _panel(panel: Element, course: Course, y: Axis, *, recommended: float | None, is_first: bool) -> None:
    x = Axis(0, 1, 0, PANEL_WIDTH)
    explain(panel, _in_words(course))
    write(panel, 0, HEAD - 14, shortened(course.name, LONGEST_NAME), font_weight=600)
    write(panel, PANEL_WIDTH, HEAD - 14, course.part, ink="faint", anchor="end")
    for mark in y.marks(3):
        rule(panel, 0, y.at(mark), PANEL_WIDTH, y.at(mark))
        if is_first:
            write(panel, -6, y.at(mark), f"{mark:.2f}".replace("-", "−"), ink="faint", anchor="end")
    for beta, words, anchor in ((0.0, "β 0", "start"), (0.5, "0.5", "middle"), (1.0, "1", "end")):
        write(panel, x.at(beta), PANEL_HEIGHT - FOOT + 12, words, ink="faint", anchor=anchor)
    if recommended is not None:
        rule(panel, x.at(recommended), HEAD - 4, x.at(recommended), PANEL_HEIGHT - FOOT, dashed=True)
    _band(panel, course, x, y)
    _course(panel, course, x, y)


def _band(panel: Element, course: Course, x: Axis, y: Axis) -> None:
    bounded = [(reading.beta, *reading.bounds) for reading in course.readings if reading.bounds]
    there = [(x.at(beta), y.at(high)) for beta, _, high in bounded]
    back = [(x.at(beta), y.at(low)) for beta, low, _ in reversed(bounded)]
    if bounded:
        add(panel, "polygon", {
            "points": _path([*there, *back]), "fill": ACCENT, "fill-opacity": "0.18", "class": "accent",
        })  # fmt: skip


def _course(panel: Element, course: Course, x: Axis, y: Axis) -> None:
    places = [(x.at(reading.beta), y.at(reading.score)) for reading in course.readings]
    add(panel, "polyline", {
        "points": _path(places), "fill": "none", "stroke": ACCENT, "stroke-width": 1.6, "class": "stroke-accent",
    })  # fmt: skip
    for left, top in places:
        add(panel, "circle", {"cx": left, "cy": top, "r": 2.4, "fill": ACCENT, "class": "accent"})


def _in_words(course: Course) -> str:
    if not course.readings:
        return f"{course.name} ({course.part}): not scored"
    first, last = course.readings[0], course.readings[-1]
    return f"{course.name} ({course.part}): {first.score:.3f} at β {first.beta:g}, {last.score:.3f} at β {last.beta:g}"


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{number(left)},{number(top)}" for left, top in places)
