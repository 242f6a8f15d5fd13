"""Writes of tasks: creating, and deleting with everything in them."""

from typing import Any

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.audit.commands import record
from service.errors import Conflict
from service.examples.commands import erase_task, hold_erasures
from service.models import AuditAction, Model, Task, new_id
from service.tasks.queries import get_task, live_tasks, unfinished_updates


def put_task(
    session: Session,
    *,
    model: Model,
    task: str,
    metadata: dict[str, Any] | None,
    guarded: bool | None = None,
    actor: str,
) -> tuple[Task, bool]:
    """Makes sure that the model has a task of this name; returns it and whether it is new.

    Metadata and guard, if given, replace what an existing task carries.
    """
    statement = (
        insert(Task)
        .values(
            tenant_id=model.tenant_id, id=new_id("tsk"), model_id=model.id, name=task, user_metadata=metadata or {},
            guarded=bool(guarded),
        )
        .on_conflict_do_nothing(
            index_elements=["tenant_id", "model_id", "name"], index_where=Task.deleted_at.is_(None)
        )
        .returning(Task)
    )  # fmt: skip
    created = session.scalar(statement)
    if created is not None:
        if created.guarded:
            _audit_guard(session, task=created, actor=actor)
        return created, True
    existing = get_task(session, model=model, task=task)
    if metadata is not None:
        existing.user_metadata = metadata
    if guarded is not None and guarded != existing.guarded:
        existing.guarded = guarded
        _audit_guard(session, task=existing, actor=actor)
    session.flush()
    return existing, False


def _audit_guard(session: Session, *, task: Task, actor: str) -> None:
    record(
        session, tenant=task.tenant_id, actor=actor, action=AuditAction.GUARD_CHANGED, target=task.id,
        name=task.name, guarded=task.guarded,
    )  # fmt: skip


def delete_task(session: Session, *, model: Model, task: str, actor: str) -> None:
    """Deletes the task and its examples for good; the name is free again.

    Waits for requests that hold the task, such as an ingest. Raises `NotFound`, and `Conflict` while an update
    that is to learn the task has not ended.
    """
    get_task(session, model=model, task=task)
    hold_erasures(session, model_id=model.id)
    row = session.scalar(live_tasks(model=model).where(Task.name == task).with_for_update())
    if row is None:  # deleted by someone else while this request waited
        return
    waiting = unfinished_updates(session, task=row)
    if waiting:
        raise Conflict(
            f"The task '{task}' is part of update {waiting[0].id}, which is {waiting[0].state}. "
            f"Cancel it (POST /v1/updates/{waiting[0].id}/cancel) or let it end, then delete the task.",
            code="task_in_use", param="task", extra={"updates": [item.id for item in waiting]},
        )  # fmt: skip
    erase_task(session, task=row)
    session.execute(update(Task).where(Task.id == row.id).values(deleted_at=func.now()))
    record(
        session, tenant=row.tenant_id, actor=actor, action=AuditAction.TASK_DELETED, target=row.id, name=row.name,
        model=row.model_id,
    )  # fmt: skip
