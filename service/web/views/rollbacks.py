"""What a rollback would change, said before it is done."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from service.errors import Conflict
from service.models import Model, Update, UpdateState, Version
from service.registry.queries import (
    get_champion,
    get_version,
    previous_champion,
    require_artifact,
    task_names,
    version_scores,
)
from service.tasks.queries import live_tasks

DIFFERENCES = ("task", "now", "then", "change")


@dataclass(frozen=True, slots=True)
class Difference:
    """A task's score now and after the rollback."""

    task: str
    now: float | None
    then: float | None

    @property
    def change(self) -> float | None:
        """What is gained; None where one of them has no score."""
        return None if self.now is None or self.then is None else self.then - self.now


@dataclass(frozen=True, slots=True)
class RollbackView:
    """What the confirmation of a rollback says."""

    model: Model
    champion: Version
    target: Version
    differences: Sequence[Difference]
    lost_labels: Sequence[str]  # which the target has never seen
    held: int  # candidates that will be scored again
    queued: int  # updates that will start from the new champion


def view_rollback(session: Session, *, model: Model, to: int | None) -> RollbackView:
    """Returns what a rollback to version `to`, or to the previous champion, would change.

    Raises `NotFound` and `Conflict` as the rollback itself would.
    """
    alias = get_champion(session, model=model)
    champion = get_version(session, model=model, version=alias.version)
    if to is None:
        previous = previous_champion(session, champion=alias)
        if previous is None:
            raise Conflict(
                f"The model '{model.name}' has no previous champion to roll back to.",
                code="no_previous_champion",
            )
        to = previous.to_version
    target = get_version(session, model=model, version=to)
    require_artifact(model, target)
    if to == champion.number:
        raise Conflict(f"Version {to} is the champion already.", code="already_champion", param="to")
    return RollbackView(
        model=model, champion=champion, target=target,
        differences=_differences(session, model=model, now=champion.number, then=to),
        lost_labels=sorted(set(champion.labels) - set(target.labels)),
        held=_count(session, model, Update.state == UpdateState.AWAITING_APPROVAL),
        queued=_count(session, model, Update.state == UpdateState.QUEUED, Update.parent == "champion"),
    )  # fmt: skip


def difference_rows(view: RollbackView) -> list[Sequence[object]]:
    """Returns the scores before and after as a table."""
    return [DIFFERENCES, *((line.task, line.now, line.then, line.change) for line in view.differences)]


def _differences(session: Session, *, model: Model, now: int, then: int) -> list[Difference]:
    # A deleted task's name is free again: only live tasks are shown, and under ids of their own until then.
    live = {task.id: task.name for task in session.scalars(live_tasks(model=model))}
    names = {task: live.get(task, task) for task in task_names(session, model=model)}
    scores = [
        {
            score.task: score.score
            for score in version_scores(session, model=model, version=version, names=names)
        }
        for version in (now, then)
    ]
    return [
        Difference(task, scores[0].get(task), scores[1].get(task))
        for task in sorted({*scores[0], *scores[1]} & set(live.values()))
    ]


def _count(session: Session, model: Model, *conditions: ColumnElement[bool]) -> int:
    statement = select(func.count()).select_from(Update).where(Update.model_id == model.id, *conditions)
    return session.scalar(statement) or 0
