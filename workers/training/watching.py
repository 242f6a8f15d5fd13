"""How a run tells where it stands and hears that it should end."""

import time
from collections.abc import Callable

from workers.training.contract import Progress, Signal
from workers.training.errors import Cancelled, Stopped

OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], Signal | None]


class Watch:
    """A run's side of the conversation with its supervisor: every call reports, then obeys."""

    def __init__(self, on_progress: OnProgress, should_stop: ShouldStop) -> None:
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._phase = ""
        self._phase_began = 0.0
        self._first_step = 0
        self.checkpoint_step = 0

    def at(self, phase: str, step: int = 0, total_steps: int = 0, loss: float | None = None) -> None:
        """Report a position, with the seconds to go at this phase's pace so far.

        Raises:
            Cancelled: the supervisor asked to give up.
            Stopped: the supervisor asked to write a checkpoint and leave.
        """
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._phase_began, self._first_step = phase, now, step
        done = step - self._first_step
        eta = (now - self._phase_began) / done * (total_steps - step) if done > 0 else None
        self._on_progress(Progress(phase, step, total_steps, loss, eta, checkpoint_step=self.checkpoint_step))
        self.obey()

    def obey(self) -> None:
        """Raise `Cancelled` or `Stopped` when the supervisor asked for it."""
        match self._should_stop():
            case "cancel":
                raise Cancelled
            case "stop":
                raise Stopped
