"""The loss curve of a run, and the guard against numbers that are no numbers."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from workers.training.errors import TrainingFailed

CURVE_POINTS = 200
RECENT_STEPS = 10
NAMED_EXAMPLES = 20
"""How many examples of a bad batch an error names."""


class LossCurve:
    """Every step's loss. On a GPU values are fetched in bunches, so that no step waits for the one before."""

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self.losses = list(losses)
        self._pending: list[tuple[Tensor, Sequence[Sequence[int]]]] = []

    def add(self, passes: Sequence[Tensor], gradient_norm: Tensor, examples: Sequence[Sequence[int]]) -> None:
        """Add one step, still on its device: each pass's part of the loss, and the ids of each pass's examples."""
        values = torch.stack([*(part.detach().float() for part in passes), gradient_norm.detach().float()])
        self._pending.append((values, examples))

    def settle(self) -> None:
        """Fetch what is pending.

        Raises:
            TrainingFailed: `non_finite_loss` or `non_finite_gradient`, naming the first step (from 1) and its
                examples; with several passes to a step, those of the pass whose loss was bad.
        """
        if not self._pending:
            return
        fetched = torch.cat([values for values, _ in self._pending]).tolist()
        pending, self._pending = self._pending, []
        for values, examples in pending:
            *passes, norm = fetched[: len(values)]
            del fetched[: len(values)]
            for loss, ids in zip(passes, examples, strict=True):
                self._check("loss", loss, ids)
            self._check("gradient", norm, [example for ids in examples for example in ids])
            self.losses.append(sum(passes))

    def _check(self, what: str, value: float, examples: Sequence[int]) -> None:
        if isfinite(value):
            return
        step, named = len(self.losses) + 1, list(examples[:NAMED_EXAMPLES])
        more = f" and {len(examples) - len(named)} more" if len(examples) > len(named) else ""
        raise TrainingFailed(
            f"non_finite_{what}",
            f"the {what} at step {step} is {value}; lower training.learning_rate or look at the rows of its batch: "
            f"examples {', '.join(map(str, named))}{more}",
            {"step": step, "examples": named},
        )

    @property
    def recent(self) -> float | None:
        """Mean loss of the last few settled steps."""
        last = self.losses[-RECENT_STEPS:]
        return sum(last) / len(last) if last else None

    def thinned(self) -> tuple[tuple[int, float], ...]:
        """The curve in at most 200 points: (last step of a window, mean loss over it)."""
        width = max(1, -(-len(self.losses) // CURVE_POINTS))
        windows = (self.losses[start : start + width] for start in range(0, len(self.losses), width))
        points = []
        end = 0
        for window in windows:
            end += len(window)
            points.append((end, sum(window) / len(window)))
        return tuple(points)
