"""What a model's retention no longer keeps is removed, a bounded batch per transaction.

Examples stay, however old, while they are in the replay buffer of a live head or of one of the newest versions, and eval examples while a version
that learnt their task (or guards it) may be scored on them: without them scores could neither be compared nor
shown. What strategies derived from removed examples goes with them, as in an erasure: nobody could tell later whose it was.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    CursorResult,
    Delete,
    all_,
    and_,
    delete,
    func,
    literal,
    or_,
    select,
    text,
    union,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.db import among
from service.examples import statements
from service.examples.commands import drop_derived, hold_erasures
from service.examples.loading import allow_long_statements
from service.models import Example, Model, Task, Update, UpdateEvent, Version, VersionTask
from service.registry.disposal import discard_artifacts
from service.registry.queries import get_model
from service.registry.schemas import RetentionSpec
from service.storage.queries import buffered_examples, is_busy, live_versions

MOST_BUFFERS = 20  # of the newest versions: each is a read under the model's lock


def models_with_retention(session: Session) -> list[tuple[str, str]]:
    """Returns (tenant, model id) of every model that keeps something not for ever."""
    rows = session.execute(select(Model.tenant_id, Model.id, Model.retention).where(Model.retention != {}))
    return [(tenant, model) for tenant, model, kept in rows if any(kept.values())]


def remove_artifacts(session: Session, *, model: str) -> list[int]:
    """Removes the adapters and states of versions past the model's limit; returns the versions, which stay as tombstones."""
    row = get_model(session, model=model, lock=True)
    newest = RetentionSpec(**row.retention).versions
    if newest is None:
        return []
    live = live_versions(session, model=row, newest=newest)
    doomed = session.execute(
        select(Version.number, Version.artifact_sha256, Version.state_sha256).where(
            Version.model_id == row.id,
            Version.artifact_sha256.is_not(None),
            Version.number.not_in(live.versions),
        )
    ).all()
    numbers = sorted(version.number for version in doomed)
    session.execute(
        update(Version)
        .where(Version.model_id == row.id, Version.number.in_(numbers))
        .values(
            artifact_sha256=None, artifact_bytes=None, state_sha256=None, state_bytes=None,
            artifact_removed_at=func.now(),
        )
    )  # fmt: skip
    discard_artifacts(session, {sha256 for version in doomed for sha256 in version[1:] if sha256})
    return numbers


def delete_old_examples(session: Session, *, model: str, limit: int) -> int:
    """Deletes at most `limit` examples past the model's days; returns how many.

    Rows that an update is about to read stay until it has ended: a model with queued or active updates is passed over.
    """
    row = get_model(session, model=model)
    if RetentionSpec(**row.retention).examples_days is None:
        return 0
    allow_long_statements(session)
    # In the order of erasures and ingests, which take the model's row last.
    hold_erasures(session, model_id=row.id)
    session.execute(text(statements.LOCK_INGEST), {"tenant": row.tenant_id, "model": row.id})
    row = get_model(session, model=model, lock=True)
    kept = RetentionSpec(**row.retention)
    if kept.examples_days is None or is_busy(session, model=row):
        return 0
    session.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))  # hashes the buffered ids
    buffered = buffered_examples(session, model=row, newest=min(kept.versions or 1, MOST_BUFFERS))
    old = (
        select(Example.id)
        .where(
            Example.model_id == row.id,
            _before(Example.created_at, kept.examples_days),
            Example.id != all_(literal(buffered, ARRAY(BigInteger))),
            or_(Example.split == "train", Example.task_id.not_in(_scored_tasks(row))),
        )
        .limit(limit)
    )
    ids = list(session.scalars(old))
    if not ids:
        return 0
    chosen = select(Example.id).where(among(Example.id, ids))
    drop_derived(session, model_id=row.id, examples=chosen)
    return _count(session, delete(Example).where(Example.id.in_(chosen)))


def _scored_tasks(model: Model) -> ColumnElement[str]:
    learnt = select(VersionTask.task_id).where(VersionTask.model_id == model.id)
    guarded = select(Task.id).where(Task.model_id == model.id, Task.guarded)
    return union(learnt, guarded).scalar_subquery()


def delete_old_events(session: Session, *, model: str, limit: int) -> int:
    """Deletes at most `limit` events of updates that finished past the model's days; returns how many."""
    row = get_model(session, model=model)
    days = RetentionSpec(**row.retention).events_days
    if days is None:
        return 0
    old = (
        select(UpdateEvent.id)
        .join(Update, and_(Update.tenant_id == UpdateEvent.tenant_id, Update.id == UpdateEvent.update_id))
        .where(Update.model_id == row.id, _before(Update.finished_at, days))
        .limit(limit)
    )
    return _count(session, delete(UpdateEvent).where(UpdateEvent.id.in_(old)))


def _before(column: InstrumentedAttribute[Any], days: int) -> ColumnElement[bool]:
    return column < func.now() - func.make_interval(0, 0, 0, days)


def _count(session: Session, statement: Delete) -> int:
    result = session.execute(statement, execution_options={"synchronize_session": False})
    assert isinstance(result, CursorResult)  # noqa: S101  # only such results count rows
    return result.rowcount
