"""Colours for shares between 0 and 1 that everyone tells apart, and what is legible on them."""

from collections.abc import Sequence

Colour = tuple[int, int, int]

# Five points of cividis (Nuñez, Anderton, Renslow 2018), which rises evenly in lightness for every kind of sight.
CIVIDIS: tuple[Colour, ...] = (
    (0, 34, 78), (66, 78, 108), (124, 123, 120), (187, 174, 111), (254, 232, 56),
)  # fmt: skip
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def scale(matrix: Sequence[Sequence[float | None]]) -> tuple[float, float]:
    """The values of the darkest and of the brightest colour: 0 and 1 for accuracies, the extremes of anything else."""
    values = [value for row in matrix for value in row if value is not None]
    if all(0 <= value <= 1 for value in values):
        return 0.0, 1.0
    return min(values), max(values)


def share(value: float, *, low: float, high: float) -> float:
    """Where a value stands between `low` and `high`; 1 where those are the same."""
    return (value - low) / (high - low) if high > low else 1.0


def colour(share: float) -> Colour:
    """The colour at a share between 0 and 1 of the scale."""
    position = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    before = min(int(position), len(CIVIDIS) - 2)
    rest = position - before
    red, green, blue = (
        round(a + (b - a) * rest) for a, b in zip(CIVIDIS[before], CIVIDIS[before + 1], strict=True)
    )
    return red, green, blue


def legible_on(background: Colour) -> Colour:
    """Black or white, whichever contrasts more: at least 4.58 to 1 on any background."""
    return max((BLACK, WHITE), key=lambda text: contrast(text, background))


def contrast(one: Colour, other: Colour) -> float:
    """The contrast ratio of WCAG 2.2, between 1 and 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def as_hex(colour: Colour) -> str:
    """The colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _luminance(colour: Colour) -> float:
    red, green, blue = (
        channel / 3294.6 if channel <= 10 else ((channel / 255 + 0.055) / 1.055) ** 2.4 for channel in colour
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
