"""Reads of tasks: the rows, and how many examples each holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from service.errors import NotFound
from service.models import Example, Model, Task, Update, UpdateState
from service.tasks.schemas import SplitCounts, TaskRead

UNFINISHED = (
    UpdateState.QUEUED, UpdateState.TRAINING, UpdateState.EVALUATING, UpdateState.AWAITING_APPROVAL,
)  # fmt: skip


@dataclass(slots=True)
class TaskCounts:
    """How many present examples a task holds, per split, and per label and split."""

    train: int = 0
    eval: int = 0
    labels: dict[str, SplitCounts] = field(default_factory=dict)


def live_tasks(*, model: Model) -> Select[Task]:
    """The statement that selects the model's tasks without deleted ones."""
    return select(Task).where(Task.model_id == model.id, Task.deleted_at.is_(None))


def get_task(session: Session, *, model: Model, task: str, hold: bool = False) -> Task:
    """Returns the model's task of that name. Raises `NotFound`.

    With `hold` the task cannot be deleted until the transaction ends.
    """
    row = session.scalar(_held(live_tasks(model=model).where(Task.name == task), hold=hold))
    if row is None:
        raise _not_found(model, [task])
    return row


def get_tasks(session: Session, *, model: Model, names: Sequence[str], hold: bool = False) -> list[Task]:
    """Returns the model's tasks of these names, in their order. Raises `NotFound` naming every missing one.

    With `hold` none of them can be deleted until the transaction ends.
    """
    statement = live_tasks(model=model).where(Task.name.in_(names)).order_by(Task.seq)
    found = {row.name: row for row in session.scalars(_held(statement, hold=hold))}
    missing = [name for name in names if name not in found]
    if missing:
        raise _not_found(model, missing)
    return [found[name] for name in names]


def task_counts(session: Session, *, task_ids: Sequence[str]) -> dict[str, TaskCounts]:
    """Returns the counts of each task; a task without examples counts zero."""
    counts = {task_id: TaskCounts() for task_id in task_ids}
    rows = session.execute(
        select(Example.task_id, Example.split, Example.label, func.count())
        .where(Example.task_id.in_(task_ids), Example.superseded_batch.is_(None))
        .group_by(Example.task_id, Example.split, Example.label)
        .order_by(Example.label)
    )
    for task_id, split, label, count in rows:
        _add(counts[task_id], split=split, label=label, count=count)
    return counts


def describe_tasks(session: Session, *, tasks: Sequence[Task]) -> list[TaskRead]:
    """Returns tasks with their counts, in the order given."""
    counts = task_counts(session, task_ids=[task.id for task in tasks])
    return [_read(task, counts[task.id]) for task in tasks]


def describe_task(session: Session, *, task: Task) -> TaskRead:
    """Returns one task with its counts."""
    return describe_tasks(session, tasks=[task])[0]


def unfinished_updates(session: Session, *, task: Task) -> list[Update]:
    """Returns the updates that are to learn the task and have not ended, oldest first."""
    statement = select(Update).where(
        Update.model_id == task.model_id, Update.state.in_(UNFINISHED), Update.task_ids.contains([task.id])
    )
    return list(session.scalars(statement.order_by(Update.seq)))


def _held(statement: Select[Task], *, hold: bool) -> Select[Task]:
    return statement.with_for_update(read=True) if hold else statement


def _add(counts: TaskCounts, *, split: str, label: str | None, count: int) -> None:
    setattr(counts, split, getattr(counts, split) + count)
    if label is not None:
        of_label = counts.labels.setdefault(label, SplitCounts(train=0, eval=0))
        setattr(of_label, split, count)


def _read(task: Task, counts: TaskCounts) -> TaskRead:
    return TaskRead(
        name=task.name,
        counts=SplitCounts(train=counts.train, eval=counts.eval),
        labels=counts.labels,
        guarded=task.guarded,
        metadata=task.user_metadata,
        created_at=task.created_at,
    )


def _not_found(model: Model, names: Sequence[str]) -> NotFound:
    quoted = ", ".join(f"'{name}'" for name in names)
    return NotFound(
        f"The model '{model.name}' has no task {quoted}. PUT /v1/models/{model.name}/tasks/NAME creates one.",
        code="task_not_found", param="task",
    )  # fmt: skip
