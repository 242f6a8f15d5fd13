"""Where values fall on an axis, and which of them are marked."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

MULTIPLES = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values along a stretch of pixels; the stretch may run backwards."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Returns the pixel of a value; one outside of the range stands at its end."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def marks(self, about: int = 5) -> list[float]:
        """Returns round values within the range, some `about` of them."""
        step = _round_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(step * at, 10) for at in range(first, last + 1)]


def axis_over(values: Iterable[float], *, start: float, end: float, least: float = 0.02) -> Axis:
    """Returns an axis that holds all values with some room at both ends, over a span of `least` at the least."""
    present = list(values) or [0.0]
    low, high = min(present), max(present)
    room = max(0.06 * (high - low), (least - (high - low)) / 2, 1e-9)
    return Axis(low - room, high + room, start, end)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(multiple for multiple in MULTIPLES if multiple * power >= rough * (1 - 1e-9))
