"""What pages show besides the reports, each in one statement however long the lineage is."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from service.db import among
from service.models import (
    Alias,
    AliasMove,
    Model,
    Task,
    Update,
    UpdateEvent,
    UpdateState,
    Version,
    VersionTask,
)
from service.registry.queries import CHAMPION
from service.updates.states import FINISHED

UNFINISHED = [state for state in UpdateState if state not in FINISHED]
Taught = Mapping[int, frozenset[str]]
"""The names of the tasks that each version learnt itself, by version number."""


@dataclass(frozen=True, slots=True)
class VersionLine:
    """A version as lineages list it."""

    number: int
    parent: int | None
    strategy: str | None
    made_at: datetime
    update: str | None
    state: str | None  # of that update
    decision: str | None
    is_removed: bool  # retention has taken its adapter


def champions(session: Session, *, models: Sequence[Model]) -> dict[str, int]:
    """Returns the champion of each model, by the model's id."""
    rows = session.execute(
        select(Alias.model_id, Alias.version).where(
            among(Alias.model_id, _ids(models)), Alias.name == CHAMPION
        )
    )
    return {model_id: version for model_id, version in rows}  # noqa: C416  # a Row is not a pair to dict()


def last_updates(session: Session, *, models: Sequence[Model]) -> dict[str, Update]:
    """Returns the newest update of each model that has one, by the model's id."""
    rows = session.scalars(
        select(Update)
        .where(among(Update.model_id, _ids(models)))
        .ext(distinct_on(Update.model_id))
        .order_by(Update.model_id, Update.seq.desc())
    )
    return {update.model_id: update for update in rows}


def unfinished_counts(session: Session, *, models: Sequence[Model]) -> dict[str, dict[str, int]]:
    """Returns how many unfinished updates each model has, by the model's id and the state."""
    rows = session.execute(
        select(Update.model_id, Update.state, func.count())
        .where(among(Update.model_id, _ids(models)), Update.state.in_(UNFINISHED))
        .group_by(Update.model_id, Update.state)
    )
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for model_id, state, count in rows:
        found[model_id][state] = count
    return found


def taught_tasks(session: Session, *, models: Sequence[Model]) -> dict[str, Taught]:
    """Returns what each version learnt, by the model's id; deleted tasks are left out."""
    rows = session.execute(
        select(VersionTask.model_id, VersionTask.version, func.array_agg(Task.name))
        .join(Task, (Task.tenant_id == VersionTask.tenant_id) & (Task.id == VersionTask.task_id))
        .where(among(VersionTask.model_id, _ids(models)), Task.deleted_at.is_(None))
        .group_by(VersionTask.model_id, VersionTask.version)
    )
    found: dict[str, dict[int, frozenset[str]]] = {model.id: {} for model in models}
    for model_id, version, names in rows:
        found[model_id][version] = frozenset(names)
    return dict(found)


def version_lines(session: Session, *, model: Model) -> list[VersionLine]:
    """Returns all versions of a model, the newest first."""
    rows = session.execute(
        select(
            Version.number, Version.parent, Version.strategy, Version.created_at, Version.update_id, Update.state,
            Update.verdict["decision"].astext, Version.artifact_removed_at.is_not(None),
        )
        .outerjoin(Update, (Update.tenant_id == Version.tenant_id) & (Update.id == Version.update_id))
        .where(Version.model_id == model.id)
        .order_by(Version.number.desc())
    )  # fmt: skip
    return [VersionLine(*row) for row in rows]


def alias_moves(session: Session, *, model: Model, limit: int | None = None) -> list[AliasMove]:
    """Returns the history of the model's aliases, the newest first."""
    statement = select(AliasMove).where(AliasMove.model_id == model.id).order_by(AliasMove.id.desc())
    return list(session.scalars(statement.limit(limit)))


def newest_updates(session: Session, *, model: Model, limit: int | None = None) -> list[Update]:
    """Returns the model's updates, the newest first."""
    statement = select(Update).where(Update.model_id == model.id).order_by(Update.seq.desc()).limit(limit)
    return list(session.scalars(statement))


def update_events(session: Session, *, update_id: str) -> list[UpdateEvent]:
    """Returns what happened to an update, the oldest first."""
    statement = select(UpdateEvent).where(UpdateEvent.update_id == update_id).order_by(UpdateEvent.id)
    return list(session.scalars(statement))


def _ids(models: Sequence[Model]) -> list[str]:
    return [model.id for model in models]
