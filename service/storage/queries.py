"""Reads of what is stored, and of what must not go."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, func, or_, select, union
from sqlalchemy.orm import Session

from service.models import (
    Alias,
    AliasMove,
    Example,
    Forecast,
    LeasedState,
    Model,
    ReplayEntry,
    Update,
    Version,
)
from service.registry.queries import get_champion, previous_champion
from service.replay.queries import read_buffer
from service.storage.schemas import Amounts, ModelStorage, StorageRead
from service.updates.queries import UPLOAD_BYTES, UPLOAD_NEEDED, UPLOAD_SHA256
from service.updates.states import ACTIVE, FINISHED, QUEUED


def storage(session: Session) -> StorageRead:
    """Returns how much the tenant stores, by model in the order they were made."""
    models = session.scalars(select(Model).order_by(Model.seq)).all()
    read = model_storage(session, models=models)
    total = {name: sum(getattr(model, name) for model in read) for name in Amounts.model_fields}
    return StorageRead(total=Amounts(**total), models=read)


def model_storage(session: Session, *, models: Collection[Model]) -> list[ModelStorage]:
    """Returns how much each of these models stores."""
    ids = [model.id for model in models]
    content = func.pg_column_size(Example.content) + func.coalesce(
        func.pg_column_size(Example.user_metadata), 0
    )
    examples = _by_model(
        session, select(Example.model_id, func.count(), func.sum(content)).where(Example.model_id.in_(ids))
        .group_by(Example.model_id),
    )  # fmt: skip
    versions = _by_model(
        session, select(Version.model_id, func.count()).where(Version.model_id.in_(ids), Version.number > 0)
        .group_by(Version.model_id),
    )  # fmt: skip
    stored = stored_artifacts()
    artifacts = _by_model(
        session, select(stored.c.model_id, func.count(), func.sum(stored.c.bytes))
        .where(stored.c.model_id.in_(ids)).group_by(stored.c.model_id),
    )  # fmt: skip
    entries = _by_model(
        session, select(ReplayEntry.model_id, func.count()).where(ReplayEntry.model_id.in_(ids))
        .group_by(ReplayEntry.model_id),
    )  # fmt: skip
    nothing = (0, 0)
    return [
        ModelStorage(
            model=model.name, id=model.id, archived=model.archived_at is not None,
            examples=examples.get(model.id, nothing)[0], example_bytes=examples.get(model.id, nothing)[1],
            versions=versions.get(model.id, nothing)[0],
            artifacts=artifacts.get(model.id, nothing)[0], artifact_bytes=artifacts.get(model.id, nothing)[1],
            replay_entries=entries.get(model.id, nothing)[0],
        )
        for model in models
    ]  # fmt: skip


def stored_artifacts() -> Subquery:
    """Returns the query of what models have in the artifact store: `model_id`, `sha256` and `bytes`, each content once a model."""
    adapters = select(
        Version.model_id, Version.artifact_sha256.label("sha256"), Version.artifact_bytes.label("bytes")
    ).where(Version.artifact_sha256.is_not(None))
    states = select(Version.model_id, Version.state_sha256, Version.state_bytes).where(
        Version.state_sha256.is_not(None)
    )
    uploads = select(Update.model_id, UPLOAD_SHA256, UPLOAD_BYTES).where(UPLOAD_NEEDED)
    return union(adapters, states, uploads).subquery()


def _by_model(session: Session, statement: Select[*tuple[Any, ...]]) -> dict[str, tuple[int, ...]]:
    return {row[0]: tuple(map(int, row[1:])) for row in session.execute(statement)}


@dataclass(frozen=True, slots=True)
class Live:
    """The versions that someone may go on from, and all of their ancestors."""

    heads: dict[int, list[int]]  # lineage by version
    newest: frozenset[int]

    @property
    def versions(self) -> set[int]:
        """Every version whose adapter must stay."""
        return {*self.newest, *(ancestor for lineage in self.heads.values() for ancestor in lineage)}


def live_versions(session: Session, *, model: Model, newest: int | None) -> Live:
    """Returns the live heads and the `newest` versions (all of them for None).

    Heads are the champion, where a plain rollback goes, where the champion came from, aliased versions, the versions
    and parents of unfinished updates and forecasts, and what unfinished blends are made of.
    """
    champion = get_champion(session, model=model)
    move = session.get_one(AliasMove, {"tenant_id": model.tenant_id, "id": champion.move_id})
    previous = previous_champion(session, champion=champion)
    numbers = {champion.version, move.from_version, previous.to_version if previous else None}
    numbers |= set(session.scalars(select(Alias.version).where(Alias.model_id == model.id)))
    unfinished = session.execute(
        select(
            Update.version, Update.parent_version, Update.parent, Update.parameters["of"].as_integer()
        ).where(Update.model_id == model.id, Update.state.not_in(FINISHED))
    )
    numbers |= set(session.scalars(select(Forecast.parent_version).where(*_unfinished_forecasts(model))))
    for version, parent_version, parent, of in unfinished:
        numbers |= {version, parent_version, int(parent) if parent.isdecimal() else None, of}
    of_model = select(Version.number).where(Version.model_id == model.id).order_by(Version.number.desc())
    last = session.scalars(of_model if newest is None else of_model.limit(newest))
    lineages = session.execute(
        select(Version.number, Version.lineage).where(
            Version.model_id == model.id, Version.number.in_(numbers - {None})
        )
    )
    return Live(heads={number: lineage for number, lineage in lineages}, newest=frozenset(last))  # noqa: C416


def buffered_examples(session: Session, *, model: Model, newest: int) -> list[int]:
    """Returns the ids of the examples in the replay buffer of any live head or of the `newest` versions."""
    live = live_versions(session, model=model, newest=newest)
    lineages = session.scalars(
        select(Version.lineage).where(
            Version.model_id == model.id, Version.number.in_({*live.heads, *live.newest})
        )
    ).all()
    kept: set[int] = set()
    for lineage in lineages:
        kept.update(read_buffer(session, model=model, lineage=lineage, cut=model.last_batch).example_ids)
    return sorted(kept)


def is_busy(session: Session, *, model: Model) -> bool:
    """Says whether an update or a forecast of the model is queued or active, and so about to read its rows."""
    updates = select(Update.id).where(Update.model_id == model.id, Update.state.in_((*ACTIVE, QUEUED)))
    forecasts = select(Forecast.id).where(*_unfinished_forecasts(model))
    return session.scalar(select(or_(updates.exists(), forecasts.exists()))) is True


def _unfinished_forecasts(model: Model) -> tuple[ColumnElement[bool], ...]:
    return (Forecast.model_id == model.id, Forecast.state.in_((LeasedState.QUEUED, LeasedState.SCORING)))
