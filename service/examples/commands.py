"""Writes of examples: ingest, deletion."""

from collections.abc import Iterable
from typing import Literal

from sqlalchemy import Select, delete, select, text
from sqlalchemy.orm import Session

from service.audit.commands import record
from service.config import get_settings
from service.errors import Unprocessable
from service.examples.loading import Loaded, Loading, Rejections, allow_long_statements
from service.examples.queries import descendants, example_not_found, has_public_id, versions_that_learnt
from service.examples.quota import check_quota
from service.examples.rows import Row, RowError, RowRules
from service.examples.schemas import IngestRead, RowProblemRead
from service.models import AuditAction, Example, Model, Task
from service.registry.commands import drop_states
from service.tasks.queries import describe_task

OnError = Literal["abort", "skip"]


def row_rules(model: Model) -> RowRules:
    """Returns what rows of the model must keep to."""
    settings = get_settings()
    return RowRules(
        task_type="causal-lm" if model.task_type == "causal-lm" else "text-classification",
        max_row_bytes=settings.max_row_bytes,
        max_label_length=settings.max_label_length,
    )


def ingest(
    session: Session, *, model: Model, task: Task, rows: Iterable[Row | RowError], on_error: OnError
) -> IngestRead:
    """Stores the rows of one body in the task, as one batch.

    Hold the task (`get_task(…, hold=True)`) before. With `on_error="abort"` a single bad row raises
    `Unprocessable` (`invalid_examples`) and nothing is stored; with `"skip"` the good rows are. Raises
    `Unprocessable` (`empty_body`) for a body without rows, `QuotaExceeded` past the tenant's storage.
    """
    loading = Loading(session, model=model, task=task)
    staged, rejections = loading.stage(rows)
    if not staged and not rejections.count:
        raise Unprocessable("The body holds no rows.", code="empty_body", param="body")
    marked, first = loading.judge(max_labels=get_settings().max_labels_per_model)
    rejections.merge(first, count=marked)
    if rejections.count and on_error == "abort":
        raise _invalid(rejections, rows=staged + rejections.count - marked)
    loaded = loading.store()
    if loaded.accepted:
        check_quota(session, tenant=model.tenant_id)
    return _answer(session, task=task, loaded=loaded, good=staged - marked, rejections=rejections)


def hold_erasures(session: Session, *, model_id: str) -> None:
    """Keeps erasures and the recording of new versions of one model apart until the transaction ends.

    Neither sees what the other has not committed: a version trained on rows that are just being erased would live,
    and its derived state with it. Taken before any row is locked, by both.
    """
    session.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('erasure:' || :model, 0))"), {"model": model_id}
    )


def delete_example(session: Session, *, task: Task, example: str, actor: str) -> None:
    """Deletes a row for good, with the rows it replaced. Raises `NotFound`."""
    hold_erasures(session, model_id=task.model_id)
    found = session.execute(
        select(Example.id, Example.external_id).where(Example.task_id == task.id, has_public_id(example))
    ).all()
    if not found:
        raise example_not_found(task=task, example=example)
    chosen = Example.id.in_([row.id for row in found])
    if found[0].external_id is not None:
        chosen = Example.external_id == found[0].external_id
    rows = select(Example.id).where(Example.task_id == task.id, chosen)
    drop_derived(session, model_id=task.model_id, examples=rows)
    deleted = session.scalars(
        delete(Example).where(Example.task_id == task.id, chosen).returning(Example.id)
    ).all()
    record(
        session, tenant=task.tenant_id, actor=actor, action=AuditAction.EXAMPLE_DELETED, target=task.id,
        examples=[f"ex_{number}" for number in sorted(deleted)],
    )  # fmt: skip


def erase_task(session: Session, *, task: Task) -> None:
    """Deletes every row of the task."""
    allow_long_statements(session)
    rows = select(Example.id).where(Example.task_id == task.id)
    drop_derived(session, model_id=task.model_id, examples=rows)
    session.execute(delete(Example).where(Example.task_id == task.id))


def drop_derived(session: Session, *, model_id: str, examples: Select[int]) -> None:
    """Drops what strategies derived from the examples: Fisher information, Gram matrices, soft targets."""
    versions = versions_that_learnt(session, model_id=model_id, examples=examples)
    inherited_by = descendants(session, model_id=model_id, versions=versions)
    drop_states(session, model_id=model_id, versions=[*versions, *inherited_by])


def _invalid(rejections: Rejections, *, rows: int) -> Unprocessable:
    first = rejections.first[0]
    return Unprocessable(
        f"{rejections.count} of {rows} rows cannot be stored, so nothing was. The first is on line {first.line}: "
        f"{first.detail}. Mend them, or send ?on_error=skip to store the others.",
        code="invalid_examples", param="body",
        extra={
            "accepted": 0, "duplicates": 0, "rejected": rejections.count,
            "errors": [error._asdict() for error in rejections.first],
        },
    )  # fmt: skip


def _answer(session: Session, *, task: Task, loaded: Loaded, good: int, rejections: Rejections) -> IngestRead:
    return IngestRead(
        accepted=loaded.accepted,
        duplicates=good - loaded.accepted,
        replaced=loaded.replaced,
        rejected=rejections.count,
        errors=[RowProblemRead(**error._asdict()) for error in rejections.first],
        batch=loaded.batch,
        task=describe_task(session, task=task),
    )
