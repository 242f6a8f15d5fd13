"""The accuracy matrix as a heatmap: versions × tasks, a number in every cell. A table too, for whoever has it read out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from service.palette import as_hex, colour, legible_on, scale, share
from service.web.charts.svg import FAINT, MARGIN, Value, add, drawing, explain, finished, shortened, write

CELL, ROW, BASELINE = 46, 24, 16
ROW_LABEL = 76
LONGEST_NAME = 20
SLANT = 0.64  # sine of the column labels' angle


@dataclass(frozen=True, slots=True)
class MatrixPicture:
    """What a heatmap shows: `matrix[row][column]` is the score of `versions[row]` on `tasks[column]`.

    `learnt` names the tasks that each version learnt itself, `marks` what is written beside a version's number.
    `address` is where a version's page is, `{}` standing for its number.
    """

    model: str
    tasks: Sequence[str]
    versions: Sequence[int]
    matrix: Sequence[Sequence[float | None]]
    learnt: Mapping[int, frozenset[str]] = field(default_factory=dict)
    marks: Mapping[int, str] = field(default_factory=dict)
    address: str | None = None


def heatmap(picture: MatrixPicture) -> str:
    """Returns the picture as SVG, the newest version on top. Cells of what a version learnt itself have a frame."""
    head = (
        MARGIN + 10 + SLANT * 6.5 * min(LONGEST_NAME, max((len(task) for task in picture.tasks), default=0))
    )
    width = ROW_LABEL + CELL * len(picture.tasks) + head + MARGIN
    height = head + ROW * len(picture.versions) + MARGIN
    label = f"Scores of {len(picture.versions)} versions of {picture.model} on {len(picture.tasks)} tasks"
    root = drawing(width, height, label=label, role="table")
    _column_labels(root, picture, y=head - 8)
    low, high = scale(picture.matrix)
    rows = list(zip(picture.versions, picture.matrix, strict=True))
    for place, (version, cells) in enumerate(reversed(rows)):
        line = add(root, "g", {
            "role": "row", "transform": f"translate(0 {head + ROW * place:.0f})", "text-anchor": "middle",
        })  # fmt: skip
        _row_label(line, picture, version)
        own = picture.learnt.get(version, frozenset())
        for column, (task, value) in enumerate(zip(picture.tasks, cells, strict=True)):
            _cell(line, ROW_LABEL + CELL * column, value, low=low, high=high, learnt=task in own)
    return finished(root)


def _column_labels(root: Element, picture: MatrixPicture, *, y: float) -> None:
    row = add(root, "g", {"role": "row"})
    write(row, MARGIN, y, "version", ink="faint", role="columnheader")
    for column, task in enumerate(picture.tasks):
        x = ROW_LABEL + CELL * (column + 0.5)
        label = write(
            row, x, y, shortened(task, LONGEST_NAME), role="columnheader", transform=f"rotate(-40 {x:.0f} {y:.0f})",
            aria_label=task,
        )  # fmt: skip
        explain(label, task)


def _row_label(line: Element, picture: MatrixPicture, version: int) -> None:
    header = add(line, "g", {"role": "rowheader"})
    linked = (
        header if picture.address is None else add(header, "a", {"href": picture.address.format(version)})
    )
    mark = picture.marks.get(version, "")
    name = write(linked, ROW_LABEL - 10, ROW / 2, f"{mark} v{version}".strip(), ink="accent", anchor="end")
    if mark:
        explain(name, f"version {version}, {mark}")


def _cell(line: Element, x: float, value: float | None, *, low: float, high: float, learnt: bool) -> None:
    # There may be thousands of cells: what they share stands in their row.
    place: dict[str, Value] = {"x": x + CELL / 2, "y": BASELINE, "role": "cell"}
    if value is None:
        add(line, "text", {**place, "fill": FAINT, "class": "missing", "aria-label": "not scored"}, "·")
        return
    background = colour(share(value, low=low, high=high))
    ink = as_hex(legible_on(background))
    add(line, "rect", {"x": x + 1, "y": 1, "width": CELL - 2, "height": ROW - 2, "fill": as_hex(background)})
    if learnt:
        frame: dict[str, Value] = {"x": x + 3, "y": 3, "width": CELL - 6, "height": ROW - 6, "fill": "none"}
        add(line, "rect", {**frame, "stroke": ink, "stroke-width": 1.5})
    add(line, "text", {**place, "fill": ink}, f"{value:.2f}".replace("-", "−"))
