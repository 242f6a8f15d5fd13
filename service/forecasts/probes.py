"""What a probe measured, as plain data that is stored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from service.forecasts.estimating import Role, Signs


@dataclass(frozen=True, slots=True)
class TaskProbe:
    """One old task: its part in the update, how many eval rows were asked, and what they showed."""

    role: Role
    rows: int
    signs: Signs


@dataclass(frozen=True, slots=True)
class Probe:
    """The first `steps` of an update's `total_steps`: what they cost, and what they did to the old tasks, by task id.

    `rate_share` is their share of all learning rates; `scoring_seconds` is what asking `scored_rows` rows took.
    """

    steps: int
    total_steps: int
    rate_share: float
    fresh_rows: int
    replay_rows: int
    prepare_seconds: float
    train_seconds: float
    scoring_seconds: float
    scored_rows: int
    tasks: Mapping[str, TaskProbe]

    def to_json(self) -> dict[str, Any]:
        """The probe as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The probe that `to_json` wrote. Raises KeyError or TypeError for another document."""
        tasks = {
            task: TaskProbe(role=found["role"], rows=found["rows"], signs=Signs(**found["signs"]))
            for task, found in document["tasks"].items()
        }
        return cls(**{**document, "tasks": tasks})

    @property
    def seconds(self) -> float:
        """What the probe took."""
        return self.prepare_seconds + self.train_seconds + self.scoring_seconds

    def seconds_of(self, trainings: int) -> float:
        """What so many trainings of all steps would take at the probe's pace, prepared once, without scoring."""
        return self.prepare_seconds + trainings * self.train_seconds * self.total_steps / max(1, self.steps)
