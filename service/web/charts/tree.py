"""The lineage as a tree: every version, what it was made from, how the gate judged it, and the aliases it carries.

Versions stand one below the other, the newest on top, as in the table beside it. The shown lineage runs straight up on the
left; whatever branched off it has a lane further right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from service.web.charts.svg import (
    ACCENT,
    FAINT,
    MARGIN,
    PAPER,
    RULE,
    WARNING,
    Value,
    add,
    drawing,
    explain,
    finished,
    shortened,
    write,
)

ROW, RADIUS = 26, 7
LANE, MOST_LANES_WIDTH = 22, 320
WORDS_WIDTH = 470
LONGEST_NOTE, LONGEST_ALIAS = 44, 24
CHARACTER = 6.7  # pixels: what a character of a flag takes


@dataclass(frozen=True, slots=True)
class Node:
    """One version: its parent, the gate's decision on it, the aliases that point at it, and a few words beside it."""

    version: int
    parent: int | None
    decision: str | None = None
    aliases: Sequence[str] = ()
    note: str = ""


def lineage_tree(
    nodes: Sequence[Node], *, trunk: Sequence[int], label: str, address: str | None = None
) -> str:
    """Returns the tree as SVG. `trunk` is the lineage that runs straight; `address` a version's page, `{}` for its number.

    A tick passed the gate, a cross failed, a question mark is undecided, a small ring was never judged.
    """
    ordered = sorted(nodes, key=lambda node: -node.version)
    lane_of = lanes({node.version: node.parent for node in nodes}, trunk)
    count = 1 + max(lane_of.values(), default=0)
    step = min(LANE, MOST_LANES_WIDTH / count)
    words = 2 * MARGIN + RADIUS + step * (count - 1) + 20
    root = drawing(words + WORDS_WIDTH, ROW * len(ordered) + 2 * MARGIN, label=label, role="group")
    places = {
        node.version: (MARGIN + RADIUS + step * lane_of[node.version], MARGIN + ROW * (row + 0.5))
        for row, node in enumerate(ordered)
    }
    for node in ordered:
        if node.parent in places:
            _edge(root, places[node.parent], places[node.version], is_trunk=lane_of[node.version] == 0)
    for node in ordered:
        _node(root, node, places[node.version], words=words, address=address)
    return finished(root)


def lanes(parents: Mapping[int, int | None], trunk: Sequence[int]) -> dict[int, int]:
    """Returns each version's lane: 0 for the trunk, and for every other line of descent the first that is free beside it.

    A line takes its lane from just above the version it branched off to its own newest version.
    """
    tails: dict[int, list[int]] = {}  # every line off the trunk, by its newest version
    on_trunk = set(trunk)
    for version in sorted(set(parents) - on_trunk):
        line = tails.pop(parents[version] or 0, []) if parents[version] is not None else []
        tails[version] = [*line, version]
    found = {version: 0 for version in parents if version in on_trunk}
    taken_to: list[int] = []  # the newest version in each lane beside the trunk
    for line in sorted(tails.values(), key=lambda line: (parents[line[0]] or 0, line[0])):
        start = parents[line[0]] or 0
        lane = next((at for at, end in enumerate(taken_to) if end <= start), len(taken_to))
        taken_to[lane : lane + 1] = [line[-1]]
        found |= dict.fromkeys(line, lane + 1)
    return found


def _edge(root: Element, parent: tuple[float, float], child: tuple[float, float], *, is_trunk: bool) -> None:
    (from_x, from_y), (to_x, to_y) = parent, child
    bend = from_y - ROW
    path = f"M{from_x:.1f} {from_y:.1f}C{from_x:.1f} {from_y - ROW / 2:.1f} {to_x:.1f} {bend + ROW / 2:.1f} {to_x:.1f} {bend:.1f}"
    stroke: dict[str, Value] = (
        {"stroke": ACCENT, "stroke-width": 2.4, "class": "stroke-accent"}
        if is_trunk
        else {"stroke": RULE, "stroke-width": 1.6, "class": "rule"}
    )
    add(root, "path", {"d": f"{path}V{to_y:.1f}", "fill": "none", **stroke})


def _node(
    root: Element, node: Node, place: tuple[float, float], *, words: float, address: str | None
) -> None:
    x, y = place
    linked = root if address is None else add(root, "a", {"href": address.format(node.version)})
    mark = add(linked, "g", {})
    explain(mark, _in_words(node))
    _mark(mark, x, y, node.decision)
    write(linked, words, y, f"v{node.version}", ink="accent", font_weight=600 if node.aliases else 400)
    left = words + 44.0
    for alias in node.aliases:
        left = _flag(root, left, y, alias)
    write(root, left, y, shortened(node.note, LONGEST_NOTE), ink="faint")


def _mark(mark: Element, x: float, y: float, decision: str | None) -> None:
    if decision == "pass":
        add(mark, "circle", {"cx": x, "cy": y, "r": RADIUS, "fill": ACCENT, "class": "accent"})
        _stroke(mark, f"M{x - 3.2:.1f} {y + 0.2:.1f}l2.4 2.6l4 -5.2", PAPER, "stroke-paper")
    elif decision == "fail":
        _outline(mark, "circle", {"cx": x, "cy": y, "r": RADIUS}, WARNING, "stroke-warning")
        _stroke(mark, f"M{x - 2.8:.1f} {y - 2.8:.1f}l5.6 5.6m0 -5.6l-5.6 5.6", WARNING, "stroke-warning")
    elif decision == "inconclusive":
        square: dict[str, Value] = {"x": x - 6.5, "y": y - 6.5, "width": 13, "height": 13}
        _outline(mark, "rect", square, FAINT, "stroke-faint")
        write(mark, x, y, "?", ink="faint", anchor="middle", font_size=11)
    else:
        _outline(mark, "circle", {"cx": x, "cy": y, "r": 4.5}, FAINT, "stroke-faint")


def _outline(parent: Element, shape: str, place: Mapping[str, Value], stroke: str, kind: str) -> None:
    """A shape that hides the line beneath it."""
    inside: dict[str, Value] = {
        "fill": PAPER, "stroke": stroke, "stroke-width": 1.6, "class": f"inside {kind}",
    }  # fmt: skip
    add(parent, shape, {**place, **inside})


def _stroke(parent: Element, path: str, stroke: str, kind: str) -> None:
    add(parent, "path", {"d": path, "fill": "none", "stroke": stroke, "stroke-width": 1.8, "class": kind})


def _flag(root: Element, left: float, y: float, alias: str) -> float:
    """Draws an alias as a flag that points at its version; returns where the next may begin."""
    text = shortened(alias, LONGEST_ALIAS)
    width = CHARACTER * len(text) + 10
    flag = add(root, "g", {})
    explain(flag, alias)
    path = f"M{left:.1f} {y:.1f}l7 -9h{width:.1f}v18h-{width:.1f}z"
    _outline(flag, "path", {"d": path}, ACCENT, "stroke-accent")
    write(flag, left + 7 + width / 2, y, text, ink="accent", anchor="middle", font_size=11)
    return left + width + 17


def _in_words(node: Node) -> str:
    origin = "the base" if node.parent is None else f"from version {node.parent}"
    return ", ".join([f"version {node.version}", origin, node.decision or "not judged", *node.aliases])
