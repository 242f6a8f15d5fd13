"""Drawings as SVG text: well formed whatever is written on them, and without styles of their own.

Colours are attributes, so that a picture stands alone; a page's stylesheet overrides them by class, for the dark.
"""

from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement, tostring

NAMESPACE = "http://www.w3.org/2000/svg"
INK, FAINT, RULE = "#1f2933", "#5b6770", "#c9d1d9"
PAPER, ACCENT, WARNING = "#ffffff", "#0b5cad", "#a84300"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MARGIN = 8

Value = str | float | int
INKS: Mapping[str, str] = {"ink": INK, "faint": FAINT, "accent": ACCENT, "warning": WARNING}


def drawing(width: float, height: float, *, label: str, role: str = "img") -> Element:
    """Returns an empty drawing on paper, in pixels. `label` says what it shows to whoever cannot see it."""
    frame: dict[str, Value] = {
        "xmlns": NAMESPACE, "width": width, "height": height, "viewBox": f"0 0 {number(width)} {number(height)}",
        "role": role, "aria-label": label, "font-family": FONT, "font-size": 12, "class": "chart",
    }  # fmt: skip
    root = Element("svg", _text(frame))
    add(root, "rect", {"width": width, "height": height, "fill": PAPER, "class": "paper"})
    return root


def add(parent: Element, tag: str, attributes: Mapping[str, Value], text: str | None = None) -> Element:
    """Adds an element with attributes, and a text within it if given."""
    element = SubElement(parent, tag, _text(attributes))
    element.text = text
    return element


def write(
    parent: Element, x: float, y: float, text: str, *, ink: str = "ink", anchor: str = "start", **more: Value
) -> Element:
    """Writes a text whose middle line is at `y`. `ink` names a colour and is the text's class."""
    place: dict[str, Value] = {
        "x": x, "y": y, "dy": "0.35em", "text-anchor": anchor, "fill": INKS[ink], "class": ink,
    }  # fmt: skip
    return add(parent, "text", place | {name.replace("_", "-"): value for name, value in more.items()}, text)


def rule(parent: Element, x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> None:
    """Draws a thin line of a chart's frame; dashed where it is a bound."""
    line: dict[str, Value] = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ink: dict[str, Value] = {"stroke": WARNING, "stroke-dasharray": "5 3", "class": "stroke-warning"}
    plain: dict[str, Value] = {"stroke": RULE, "class": "rule"}
    add(parent, "line", {**line, **(ink if dashed else plain)})


def explain(element: Element, text: str) -> None:
    """Gives an element the words that appear on hovering over it."""
    add(element, "title", {}, text)


def finished(root: Element) -> str:
    """Returns the drawing as text."""
    return tostring(root, encoding="unicode")


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def signed(value: float, places: int) -> str:
    """A number with its sign and a proper minus; nothing has no sign."""
    text = f"{value:+.{places}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def shortened(text: str, most: int) -> str:
    """A name that fits a label."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(attributes: Mapping[str, Value]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else number(value) for name, value in attributes.items()}
