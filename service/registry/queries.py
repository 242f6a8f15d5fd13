"""Reads of models, versions, aliases and history."""

from collections.abc import Sequence
from typing import Any

from psycopg.errors import LockNotAvailable
from sqlalchemy import Select, func, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.errors import Conflict, NotFound
from service.models import (
    Alias,
    AliasMove,
    Example,
    Model,
    Score,
    Task,
    Update,
    UpdateState,
    Version,
    VersionTask,
)
from service.registry.schemas import ModelCounts, ModelRead, TaskScore, VersionRead

CHAMPION = "champion"
ACTIVE = (UpdateState.TRAINING, UpdateState.EVALUATING)
WAIT_ALONE_SECONDS = 15


def get_model(
    session: Session, *, model: str, for_change: bool = False, hold: bool = False, lock: bool = False
) -> Model:
    """Returns the tenant's model of that name or id.

    Raises `NotFound`; with `for_change` also `Conflict` for an archived model. `hold` keeps it from being archived or
    purged until the transaction ends: whoever adds rows to it does so. `lock` holds the row against all who lock it:
    whoever moves an alias takes it first, then the alias, then the update.
    """
    statement = select(Model).where((Model.name == model) | (Model.id == model))
    if lock:
        # Not against foreign keys: rows of the model may be added meanwhile.
        statement = statement.with_for_update(key_share=True).execution_options(populate_existing=True)
    elif hold:
        statement = statement.with_for_update(read=True, key_share=True)
    return _found(session, statement, model=model, for_change=for_change)


def get_model_alone(session: Session, *, model: str) -> Model:
    """Returns the model of that name or id once nobody holds it, and lets nobody hold it until the transaction ends.

    Raises `NotFound`, and `Conflict` where rows are being added to it for longer than a request can wait.
    """
    statement = select(Model).where((Model.name == model) | (Model.id == model)).with_for_update()
    session.execute(
        text("SELECT set_config('lock_timeout', :wait, true)"), {"wait": f"{WAIT_ALONE_SECONDS}s"}
    )
    try:
        return _found(session, statement, model=model, for_change=False)
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        raise Conflict(
            f"Rows are being added to the model '{model}'; send the request again when that is done.",
            code="model_busy", headers={"Retry-After": "15"},
        ) from None  # fmt: skip


def _found(session: Session, statement: Select[Model], *, model: str, for_change: bool) -> Model:
    row = session.scalar(statement)
    if row is None:
        raise NotFound(
            f"No model '{model}'. GET /v1/models lists yours.", code="model_not_found", param="model"
        )
    if for_change and row.archived_at is not None:
        raise Conflict(
            f"The model '{row.name}' is archived; it can be read, not changed.", code="model_archived"
        )
    return row


def get_version(session: Session, *, model: Model, version: int) -> Version:
    """Returns one version of the model. Raises `NotFound`."""
    row = session.get(Version, {"tenant_id": model.tenant_id, "model_id": model.id, "number": version})
    if row is None:
        raise NotFound(
            f"The model '{model.name}' has no version {version}; its newest is {model.last_version}.",
            code="version_not_found", param="version",
        )  # fmt: skip
    return row


def require_artifact(model: Model, version: Version) -> None:
    """Raises `Conflict` when the version's adapter was removed, by retention or an erasure: nothing can start from it."""
    if version.artifact_removed_at is not None:
        raise Conflict(
            f"The adapter of version {version.number} of '{model.name}' was removed, by the model's retention or an erasure, at "
            f"{version.artifact_removed_at.isoformat()}; choose another version.",
            code="artifact_removed", param="version",
        )  # fmt: skip


def get_alias(session: Session, *, model: Model, alias: str, lock: bool = False) -> Alias | None:
    """Returns the alias, with its row locked to the transaction's end if asked."""
    statement = select(Alias).where(Alias.model_id == model.id, Alias.name == alias)
    if lock:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    return session.scalar(statement)


def get_champion(session: Session, *, model: Model, lock: bool = False) -> Alias:
    """Returns the champion alias, which every model has from its first moment."""
    alias = get_alias(session, model=model, alias=CHAMPION, lock=lock)
    if alias is None:
        raise RuntimeError(f"model {model.id} has no champion alias")
    return alias


def previous_champion(session: Session, *, champion: Alias) -> AliasMove | None:
    """Returns the history row a plain rollback returns to, or None when there is none."""
    move = session.get_one(AliasMove, {"tenant_id": champion.tenant_id, "id": champion.move_id})
    if move.predecessor_id is None:
        return None
    return session.get_one(AliasMove, {"tenant_id": champion.tenant_id, "id": move.predecessor_id})


def list_aliases(session: Session, *, model: Model) -> list[Alias]:
    """Returns the model's aliases by name."""
    return list(session.scalars(select(Alias).where(Alias.model_id == model.id).order_by(Alias.name)))


def describe_model(session: Session, *, model: Model) -> ModelRead:
    """Returns a model with champion, labels, counts and active update."""
    champion = get_champion(session, model=model)
    previous = previous_champion(session, champion=champion)
    states = _update_states(session, model=model)
    active = session.scalar(select(Update.id).where(Update.model_id == model.id, Update.state.in_(ACTIVE)))
    splits, labels = _example_counts(session, model=model)
    tasks = session.scalar(
        select(func.count()).select_from(Task).where(Task.model_id == model.id, Task.deleted_at.is_(None))
    )
    return ModelRead.model_validate(
        {
            **{name: getattr(model, name) for name in (
                "id", "name", "base_model", "task_type", "adapter", "replay", "gate", "retention", "created_at", "archived_at")},
            "metadata": model.user_metadata,
            "champion": champion.version,
            "previous": previous.to_version if previous else None,
            "labels": labels,
            "counts": ModelCounts(
                tasks=tasks or 0,
                train_examples=splits.get("train", 0),
                eval_examples=splits.get("eval", 0),
                versions=model.last_version,
                queued_updates=states.get(UpdateState.QUEUED, 0),
                awaiting_approval=states.get(UpdateState.AWAITING_APPROVAL, 0),
            ),
            "active_update": active,
        }
    )  # fmt: skip


def _update_states(session: Session, *, model: Model) -> dict[str, int]:
    rows = session.execute(
        select(Update.state, func.count()).where(Update.model_id == model.id).group_by(Update.state)
    )
    return {state: count for state, count in rows}  # noqa: C416  # a Row is not a pair to dict()


def _example_counts(session: Session, *, model: Model) -> tuple[dict[str, int], list[str]]:
    tasks = select(Task.id).where(Task.model_id == model.id, Task.deleted_at.is_(None))
    rows = session.execute(
        select(Example.split, Example.label, func.count())
        .where(Example.task_id.in_(tasks), Example.superseded_batch.is_(None))
        .group_by(Example.split, Example.label)
    )
    splits: dict[str, int] = {}
    labels: set[str] = set()
    for split, label, count in rows:
        splits[split] = splits.get(split, 0) + count
        if label is not None:
            labels.add(label)
    return splits, sorted(labels)


def describe_version(session: Session, *, model: Model, version: Version) -> VersionRead:
    """Returns a version with its lineage, scores, verdict and aliases."""
    update = (
        session.scalar(select(Update).where(Update.id == version.update_id)) if version.update_id else None
    )
    names = task_names(session, model=model)
    taught = session.scalars(
        select(VersionTask.task_id).where(
            VersionTask.model_id == model.id, VersionTask.version == version.number
        )
    )
    aliases = session.scalars(
        select(Alias.name)
        .where(Alias.model_id == model.id, Alias.version == version.number)
        .order_by(Alias.name)
    )
    return VersionRead.model_validate(
        {
            **{name: getattr(version, name) for name in (
                "parent", "lineage", "strategy", "parameters", "training", "labels", "statistics", "provenance",
                "artifact_removed_at", "created_at")},
            "model": model.name,
            "version": version.number,
            "update": version.update_id,
            "seed": version.training.get("seed"),
            "data_cut": version.cut,
            "tasks": sorted(names[task] for task in taught),
            "artifact": {"sha256": version.artifact_sha256, "bytes": version.artifact_bytes}
            if version.artifact_sha256 else None,
            "scores": version_scores(session, model=model, version=version.number, names=names),
            "verdict": update.verdict if update else None,
            "aliases": list(aliases),
        }
    )  # fmt: skip


def task_names(session: Session, *, model: Model) -> dict[str, str]:
    """Returns the names of the model's tasks by id, deleted ones included."""
    rows = session.execute(select(Task.id, Task.name).where(Task.model_id == model.id))
    return {task_id: name for task_id, name in rows}  # noqa: C416


def version_scores(
    session: Session, *, model: Model, version: int, names: dict[str, str]
) -> Sequence[TaskScore]:
    """Returns the version's newest score on each task, by task name."""
    rows = session.execute(
        select(Score.task_id, Score.score, Score.size)
        .where(Score.model_id == model.id, Score.version == version)
        .ext(distinct_on(Score.task_id))
        .order_by(Score.task_id, Score.created_at.desc())
    )
    scores = [TaskScore(task=names[task], score=score, eval_size=size) for task, score, size in rows]
    return sorted(scores, key=lambda score: score.task)


def move_read(move: AliasMove) -> dict[str, Any]:
    """Returns a history row in its public shape."""
    return {
        "id": move.id, "alias": move.alias, "kind": move.kind, "from_version": move.from_version,
        "to_version": move.to_version, "update": move.update_id, "by": move.actor, "reason": move.reason, "at": move.at,
    }  # fmt: skip
