"""The loss curve of a run, and the guard against numbers that are no numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.training.errors import TrainingFailed

CURVE_POINTS = 200
RECENT_STEPS = 10


class LossCurve:
    """Every step's loss. On a GPU values are fetched in bunches, so that no step waits for the one before."""

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self.losses = list(losses)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Add one step, still on its device."""
        self._pending.append((loss.detach(), gradient_norm.detach()))

    def settle(self) -> None:
        """Fetch what is pending.

        Raises:
            TrainingFailed: `non_finite_loss` or `non_finite_gradient`, naming the first step (from 1).
        """
        if not self._pending:
            return
        values = torch.stack(
            [torch.stack([loss.float(), norm.float()]) for loss, norm in self._pending]
        ).tolist()
        self._pending.clear()
        for loss, norm in values:
            for value, what in ((loss, "loss"), (norm, "gradient")):
                if not abs(value) < float("inf"):
                    step = len(self.losses) + 1
                    raise TrainingFailed(
                        f"non_finite_{what}",
                        f"the {what} at step {step} is {value}; lower training.learning_rate or look at the rows",
                        {"step": step},
                    )
            self.losses.append(loss)

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
