"""Writes of models, versions' aliases and history."""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from structlog import get_logger

from service.audit.commands import record
from service.config import get_settings
from service.errors import Conflict, PreconditionFailed, Unprocessable
from service.models import (
    Alias,
    AliasMove,
    AuditAction,
    EventType,
    Model,
    Update,
    UpdateState,
    Version,
    new_id,
)
from service.queue import nudge_after_commit
from service.registry.disposal import discard_artifacts
from service.registry.queries import (
    ACTIVE,
    CHAMPION,
    get_alias,
    get_champion,
    get_model,
    get_model_alone,
    get_version,
    previous_champion,
    require_artifact,
)
from service.registry.schemas import ModelChange, ModelCreate
from service.updates.states import change_state
from service.webhooks.outbox import tell_of_champion

log = get_logger(__name__)

MoveKind = Literal["created", "promoted", "approved", "forced", "assigned", "rolled_back"]
# What the gate promotes by itself is no person's act: the history tells of it.
AUDITED_MOVES: dict[MoveKind, AuditAction] = {
    "approved": AuditAction.CANDIDATE_APPROVED,
    "forced": AuditAction.PROMOTION_FORCED,
    "assigned": AuditAction.ALIAS_MOVED,
    "rolled_back": AuditAction.CHAMPION_ROLLED_BACK,
}
# A promotion is told of by its update.
TOLD_MOVES: dict[MoveKind, EventType] = {
    "assigned": EventType.CHAMPION_ASSIGNED,
    "rolled_back": EventType.CHAMPION_ROLLED_BACK,
}


def create_model(session: Session, *, request: ModelCreate, tenant: str, actor: str) -> Model:
    """Creates a model with its version 0 and a champion that points there.

    Raises `Unprocessable` for a base model outside the catalogue and `Conflict` for a name in use.
    """
    _check_base_model(request)
    model = Model(
        tenant_id=tenant, id=new_id("mdl"), name=request.name, base_model=request.base_model,
        task_type=request.task_type, adapter=request.adapter.model_dump(), replay=request.replay.model_dump(),
        gate=request.gate.model_dump(), user_metadata=request.metadata, buffer_seed=request.replay.seed,
    )  # fmt: skip
    try:
        with session.begin_nested():
            session.add(model)
            session.flush()
    except IntegrityError:
        raise Conflict(
            f"A model named '{request.name}' exists already (an archived one keeps its name).",
            code="model_exists", param="name",
        ) from None  # fmt: skip
    session.add(
        Version(
            tenant_id=tenant, model_id=model.id, number=0, parent=None, lineage=[0], parameters={}, training={},
            cut=0, labels=[], statistics={}, provenance={"base_model": request.base_model},
        )
    )  # fmt: skip
    session.flush()
    _move(
        session,
        model=model,
        alias=CHAMPION,
        to=0,
        kind="created",
        actor=actor,
        from_version=None,
        predecessor=None,
    )
    return model


def _check_base_model(request: ModelCreate) -> None:
    catalogue = get_settings().catalogue
    entry = catalogue.get(request.base_model)
    if entry is None:
        raise Unprocessable(
            f"Unknown base model '{request.base_model}'. This service offers: {', '.join(sorted(catalogue))}. "
            "The operator adds more with PALIMPSEST_BASE_MODELS.",
            code="unknown_base_model", param="base_model",
        )  # fmt: skip
    if request.task_type not in entry.task_types:
        raise Unprocessable(
            f"The base model '{request.base_model}' serves {', '.join(entry.task_types)}, not {request.task_type}.",
            code="task_type_not_supported", param="task_type",
        )  # fmt: skip


def change_model(session: Session, *, model: str, change: ModelChange, actor: str) -> Model:
    """Changes gate, buffer capacity, retention or metadata; only later updates and sweeps see it."""
    row = get_model(session, model=model, for_change=True, lock=True)
    if change.gate is not None:
        before, row.gate = row.gate, change.gate.model_dump()
        record(
            session, tenant=row.tenant_id, actor=actor, action=AuditAction.GATE_CHANGED, target=row.id,
            before=before, after=row.gate,
        )  # fmt: skip
    if change.replay is not None:
        row.replay = {**row.replay, "capacity": change.replay.capacity}
    if change.retention is not None:
        earlier, row.retention = row.retention, change.retention.model_dump()
        record(
            session, tenant=row.tenant_id, actor=actor, action=AuditAction.RETENTION_CHANGED, target=row.id,
            before=earlier, after=row.retention,
        )  # fmt: skip
    if change.metadata is not None:
        row.user_metadata = change.metadata
    session.flush()
    return row


def archive_model(session: Session, *, model: str, actor: str) -> None:
    """Archives a model: readable, unchangeable. Archiving again changes nothing.

    Waits for requests that hold the model, such as an ingest. Raises `Conflict` while an update is active or queued.
    """
    row = get_model_alone(session, model=model)
    unfinished = session.scalar(
        select(Update.id)
        .where(Update.model_id == row.id, Update.state.in_((*ACTIVE, UpdateState.QUEUED)))
        .limit(1)
    )
    if unfinished is not None:
        raise Conflict(
            f"The update {unfinished} is not finished; cancel it or wait for it, then archive.",
            code="model_busy",
        )
    if row.archived_at is None:
        row.archived_at = session.scalar(select(func.now()))
        record(
            session, tenant=row.tenant_id, actor=actor, action=AuditAction.MODEL_ARCHIVED, target=row.id,
            name=row.name,
        )  # fmt: skip


def promote(
    session: Session,
    *,
    model: Model,
    version: int,
    kind: MoveKind,
    actor: str,
    reason: str | None,
    update_id: str | None,
) -> None:
    """Makes `version` the champion and writes the history row; a plain rollback will return to the present one.

    A version that is the champion already stays it, and no row is written. The caller holds the model's lock.
    """
    champion = get_champion(session, model=model, lock=True)
    if champion.version == version:
        return
    _move(
        session, model=model, alias=CHAMPION, to=version, kind=kind, actor=actor, reason=reason,
        from_version=champion.version, predecessor=champion.move_id, update_id=update_id, current=champion,
    )  # fmt: skip


def put_alias(
    session: Session,
    *,
    model: str,
    alias: str,
    version: int,
    actor: str,
    reason: str | None,
    if_match: str | None,
) -> Alias:
    """Points an alias at a version of this model, creating it if need be.

    Raises `NotFound` for a version of no or another model, `Conflict` for one whose adapter retention has removed,
    `PreconditionFailed` when `if_match` is stale.
    """
    if alias == "previous":
        raise Unprocessable(
            "'previous' follows the champion's history and cannot be set; move 'champion' or roll back.",
            code="reserved_alias", param="alias",
        )  # fmt: skip
    row = get_model(session, model=model, for_change=True, lock=True)
    require_artifact(row, get_version(session, model=row, version=version))
    current = get_alias(session, model=row, alias=alias, lock=True)
    _check_if_match(if_match, current)
    if current is not None and current.version == version:
        return current
    _move(
        session, model=row, alias=alias, to=version, kind="assigned", actor=actor, reason=reason,
        from_version=current.version if current else None,
        predecessor=current.move_id if current else None, current=current,
    )  # fmt: skip
    return get_alias(session, model=row, alias=alias) or _lost(alias)


def _lost(alias: str) -> Alias:
    raise RuntimeError(f"alias {alias} vanished within its own transaction")


def _check_if_match(if_match: str | None, current: Alias | None) -> None:
    if if_match is None:
        return
    tags = {tag.strip() for tag in if_match.split(",")}
    if current is None or (etag(current) not in tags and "*" not in tags):
        raise PreconditionFailed(
            f"The alias has moved: its ETag is now {etag(current) if current else 'none'}. Read it again, then decide.",
            param="If-Match",
        )


def etag(alias: Alias) -> str:
    """Returns the entity tag of an alias: it changes with every move."""
    return f'"{alias.move_id}"'


def roll_back(session: Session, *, model: str, to: int | None, reason: str, actor: str) -> AliasMove:
    """Moves the champion back: to its predecessor, or to version `to`.

    Repeated plain rollbacks walk the champion's history back one promotion at a time. Raises `Conflict` when
    there is no previous champion, `to` already is the champion, or retention has removed the version's adapter;
    `NotFound` for an unknown version.
    """
    row = get_model(session, model=model, for_change=True, lock=True)
    champion = get_champion(session, model=row, lock=True)
    if to is None:
        target = previous_champion(session, champion=champion)
        if target is None:
            raise Conflict(
                f"The model '{row.name}' has no previous champion to roll back to.",
                code="no_previous_champion",
            )
        to, predecessor = target.to_version, target.predecessor_id
        require_artifact(row, get_version(session, model=row, version=to))
    else:
        require_artifact(row, get_version(session, model=row, version=to))
        if to == champion.version:
            raise Conflict(f"Version {to} is the champion already.", code="already_champion", param="to")
        predecessor = _predecessor_of(session, champion=champion, version=to)
    return _move(
        session, model=row, alias=CHAMPION, to=to, kind="rolled_back", actor=actor, reason=reason,
        from_version=champion.version, predecessor=predecessor, current=champion,
    )  # fmt: skip


def _predecessor_of(session: Session, *, champion: Alias, version: int) -> int | None:
    """Finds `version` on the way back from the champion; elsewhere, the champion itself becomes the way back."""
    chain = session.execute(_chain(champion), {"head": champion.move_id, "tenant": champion.tenant_id}).all()
    for _move_id, to_version, predecessor in chain[1:]:
        if to_version == version:
            return int(predecessor) if predecessor is not None else None
    return champion.move_id


def _chain(champion: Alias) -> Any:
    head = (
        select(AliasMove.id, AliasMove.to_version, AliasMove.predecessor_id)
        .where(AliasMove.id == champion.move_id)
        .cte("chain", recursive=True)
    )
    chain = head.union_all(
        select(AliasMove.id, AliasMove.to_version, AliasMove.predecessor_id).where(
            AliasMove.id == head.c.predecessor_id
        )
    )
    return select(chain.c.id, chain.c.to_version, chain.c.predecessor_id).order_by(chain.c.id.desc())


def _move(
    session: Session,
    *,
    model: Model,
    alias: str,
    to: int,
    kind: MoveKind,
    actor: str,
    from_version: int | None,
    predecessor: int | None,
    reason: str | None = None,
    update_id: str | None = None,
    current: Alias | None = None,
) -> AliasMove:
    move = AliasMove(
        tenant_id=model.tenant_id, model_id=model.id, alias=alias, kind=kind, from_version=from_version, to_version=to,
        predecessor_id=predecessor, update_id=update_id, actor=actor, reason=reason,
    )  # fmt: skip
    session.add(move)
    session.flush()
    if current is None:
        session.add(
            Alias(tenant_id=model.tenant_id, model_id=model.id, name=alias, version=to, move_id=move.id)
        )
    else:
        current.version, current.move_id = to, move.id
        current.updated_at = move.at
    session.flush()
    if action := AUDITED_MOVES.get(kind):
        record(
            session, tenant=model.tenant_id, actor=actor, action=action, target=model.id, alias=alias,
            from_version=from_version, to_version=to, reason=reason, update=update_id,
        )  # fmt: skip
    if alias == CHAMPION and kind != "created":
        if event := TOLD_MOVES.get(kind):
            tell_of_champion(session, model=model, move_id=move.id, event=event)
            _settle_held(session, model=model, version=to, actor=actor, reason=reason)
        _request_rescoring(session, model=model)
    return move


def _settle_held(session: Session, *, model: Model, version: int, actor: str, reason: str | None) -> None:
    # A held candidate that a person made champion directly is thereby approved.
    update_id = get_version(session, model=model, version=version).update_id
    if update_id is not None:
        change_state(
            session, update_id=update_id, to=UpdateState.PROMOTED, only_from=[UpdateState.AWAITING_APPROVAL],
            data={"by": actor, "reason": reason}, decided_by=actor, rescore_requested_at=None,
        )  # fmt: skip


def _request_rescoring(session: Session, *, model: Model) -> None:
    # Held candidates were compared with a champion that no longer is one.
    held = session.execute(
        update(Update)
        .where(Update.model_id == model.id, Update.state == UpdateState.AWAITING_APPROVAL)
        .values(rescore_requested_at=func.now())
        .returning(Update.id)
    )
    if held.first() is not None:
        nudge_after_commit(session)


def drop_states(session: Session, *, model_id: str, versions: Sequence[int]) -> None:
    """Forgets what the strategies of these versions left for the next update, at once; the versions stay as they are.

    An update that starts from one of them rebuilds the state from the buffer, or says that it cannot.
    """
    with_state = (
        Version.model_id == model_id,
        Version.number.in_(versions),
        Version.state_sha256.is_not(None),
    )
    dropped = set(session.scalars(select(Version.state_sha256).where(*with_state)))
    if not dropped:
        return
    session.execute(update(Version).where(*with_state).values(state_sha256=None, state_bytes=None))
    discard_artifacts(session, {sha256 for sha256 in dropped if sha256})
