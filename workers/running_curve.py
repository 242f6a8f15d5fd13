"""The course of the loss while an update trains, in so few points that it travels with the progress every second."""

MOST_POINTS = 120


class RunningCurve:
    """Points (step, recent mean loss), evenly spread over the steps so far and never more than `MOST_POINTS`.

    Whenever they have become that many, every other one is dropped, and from then on they are taken half as often.
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._stride = 1

    def add(self, step: int, loss: float) -> None:
        """Takes a point, if it is one of the evenly spread. A step before the last point's begins a new curve."""
        if self.points and step < self.points[-1][0]:
            self.points, self._stride = [], 1
        if self.points and step < self.points[-1][0] + self._stride:
            return
        self.points.append((step, round(loss, 5)))
        if len(self.points) == MOST_POINTS:
            self.points = self.points[1::2]
            self._stride *= 2
