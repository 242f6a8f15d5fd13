"""Reads of updates."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import NotFound
from service.models import Model, Task, Update, UpdateState
from service.registry.queries import task_names
from service.updates.schemas import UpdateRead


def get_update(session: Session, *, update_id: str, lock: bool = False) -> Update:
    """Returns the tenant's update of that id. Raises `NotFound`."""
    statement = select(Update).where(Update.id == update_id)
    if lock:
        # What was read before the lock may be old by now.
        statement = statement.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(statement)
    if row is None:
        raise NotFound(f"No update '{update_id}'.", code="update_not_found", param="update")
    return row


def describe_update(session: Session, *, update: Update) -> UpdateRead:
    """Returns an update in its public shape."""
    model = session.get_one(Model, {"tenant_id": update.tenant_id, "id": update.model_id})
    names = task_names(session, model=model)
    return update_read(update, model=model, names=names)


def update_read(update: Update, *, model: Model, names: dict[str, str]) -> UpdateRead:
    """Returns an update in its public shape, given the names of its model's tasks."""
    return UpdateRead.model_validate(
        {
            **{name: getattr(update, name) for name in (
                "id", "training", "relearn", "promotion", "warnings", "parent_version", "version", "compared_with",
                "verdict", "decided_by", "progress", "max_attempts", "error", "requested_by", "request_id", "created_at",
                "started_at", "finished_at")},
            "model": model.name,
            "status": update.state,
            "tasks": [names.get(task_id, task_id) for task_id in update.task_ids],
            "strategy": {"name": update.strategy, "parameters": update.parameters},
            "parent": update.parent if update.parent == "champion" else int(update.parent),
            "metadata": update.user_metadata,
            "data_cut": update.cut,
            "attempt": _attempt(update),
            "cancel_requested": update.cancel_requested_at is not None,
        }
    )  # fmt: skip


def _attempt(update: Update) -> int:
    """The attempt an update is in, or ended in; one that failed for good has no next."""
    begun = update.attempts_used if update.state == UpdateState.FAILED else update.attempts_used + 1
    return min(begun, update.max_attempts)


def get_update_tasks(session: Session, *, update: Update) -> list[Task]:
    """Returns the tasks an update learns, deleted ones left out."""
    return list(
        session.scalars(
            select(Task).where(Task.id.in_(update.task_ids), Task.deleted_at.is_(None)).order_by(Task.name)
        )
    )
