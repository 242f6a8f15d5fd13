"""What versions said of single examples, looked up in their outcomes."""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from service.evaluations.outcomes import NO_LABEL, Outcomes
from service.models import Example, Model, Version
from service.reports.schemas import Answer
from service.tasks.queries import get_task, live_tasks


class Answers:
    """Finds what a version answered on an example; outcomes come by version number and task id."""

    def __init__(self, outcomes: Mapping[tuple[int, str], Outcomes]) -> None:
        self._outcomes = outcomes
        self._positions: dict[tuple[int, str], dict[int, int]] = {}

    def answer(self, version: Version, example: Example) -> Answer:
        """Returns the version's answer."""
        outcomes, at = self._find(version, example)
        chosen = int(outcomes.predicted[at])
        return Answer(
            label=None if chosen == NO_LABEL else version.labels[chosen],
            confidence=round(float(outcomes.confidence[at]), 4),
            score=None if outcomes.graded is None else float(outcomes.graded[at]),
        )

    def correct(self, version: Version, example: Example) -> bool:
        """Says whether the answer was right."""
        outcomes, at = self._find(version, example)
        return bool(outcomes.correct[at])

    def _find(self, version: Version, example: Example) -> tuple[Outcomes, int]:
        key = (version.number, example.task_id)
        outcomes = self._outcomes[key]
        if key not in self._positions:
            self._positions[key] = {int(id_): at for at, id_ in enumerate(outcomes.example_ids)}
        return outcomes, self._positions[key][example.id]


def named_tasks(session: Session, *, model: Model, task: str | None) -> dict[str, str]:
    """Returns the names by id of the task of that name, or of every task that is not deleted. Raises `NotFound`."""
    if task is not None:
        return {get_task(session, model=model, task=task).id: task}
    return {row.id: row.name for row in session.scalars(live_tasks(model=model))}
