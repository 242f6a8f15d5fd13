"""Writes of erasures: the erasure itself, the rebuild without the erased rows, the end of the tainted adapters."""

from pydantic import ValidationError
from sqlalchemy import ColumnElement, CursorResult, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from service.audit.commands import record
from service.db import among
from service.erasures.queries import plan_rebuild, tainted_versions
from service.erasures.schemas import RebuildCreate
from service.erasures.signing import digest_of_subject
from service.errors import Conflict, Unprocessable
from service.examples.commands import hold_erasures
from service.examples.loading import allow_long_statements, hold_ingests
from service.examples.queries import descendants, versions_that_learnt
from service.models import (
    BLEND,
    Alias,
    AuditAction,
    Dial,
    DialState,
    Erasure,
    Example,
    Forecast,
    LeasedState,
    Model,
    Update,
    UpdateState,
    Version,
    new_id,
)
from service.registry.commands import drop_states
from service.registry.disposal import discard_artifacts
from service.registry.queries import get_champion, get_model
from service.security import Principal
from service.storage.answers import blank_row_errors
from service.updates.commands import request_update
from service.updates.schemas import UpdateCreate
from service.updates.states import ACTIVE

GAVE_UP = (UpdateState.FAILED, UpdateState.CANCELLED, UpdateState.REJECTED)


def erase_subject(session: Session, *, model: Model, subject: str, principal: Principal) -> Erasure:
    """Deletes every row of the data subject in the model, and notes which versions were trained on any.

    A row that was corrected and its corrections go together, whichever of them names the subject.

    Asked again, it also names what was found before: a repeat of a request whose answer was lost tells the same.
    Raises `Unavailable` (`ingest_busy`) while a large body is being stored.
    """
    allow_long_statements(session)
    hold_erasures(session, model_id=model.id)
    get_model(session, model=model.id)  # a purge may have come before
    hold_ingests(session, model=model)  # one under way may be about to hand the subject on to other rows
    theirs = _rows_of(session, model=model, subject=subject)
    rows = select(Example.id).where(theirs)
    # Locked first: a version that is just admitting one of the rows commits before it is asked for below.
    session.execute(select(func.count()).select_from(rows.with_for_update().subquery()))
    digest = digest_of_subject(subject, tenant=model.tenant_id, model_id=model.id)
    earlier = session.scalars(
        select(Erasure.versions).where(Erasure.model_id == model.id, Erasure.subject_digest == digest)
    )
    known = {number for versions in earlier for number in versions}
    versions = sorted(known.union(versions_that_learnt(session, model_id=model.id, examples=rows)))
    inherited_by = descendants(session, model_id=model.id, versions=versions)
    drop_states(session, model_id=model.id, versions=[*versions, *inherited_by])
    deleted = session.execute(delete(Example).where(theirs))
    assert isinstance(deleted, CursorResult)  # noqa: S101  # only such results count rows
    blank_row_errors(session)
    erasure = Erasure(
        tenant_id=model.tenant_id, id=new_id("era"), model_id=model.id, subject_digest=digest,
        deleted=deleted.rowcount, versions=versions, requested_by=principal.actor,
    )  # fmt: skip
    session.add(erasure)
    session.flush()
    session.refresh(erasure)
    record(
        session, tenant=model.tenant_id, actor=principal.actor, action=AuditAction.SUBJECT_ERASED, target=model.id,
        erasure=erasure.id, deleted=deleted.rowcount, versions=versions, inherited_by=inherited_by,
    )  # fmt: skip
    return erasure


def _rows_of(session: Session, *, model: Model, subject: str) -> ColumnElement[bool]:
    """The condition of the subject's rows and of all that share a task and an `id` with one of them.

    The ids are looked up first: within the condition they would be a join, and one planned on stale statistics.
    """
    own = and_(Example.model_id == model.id, Example.subject == subject)
    named = session.execute(
        select(Example.task_id, func.array_agg(Example.external_id.distinct()))
        .where(own, Example.external_id.is_not(None))
        .group_by(Example.task_id)
    ).all()
    return or_(own, *(and_(Example.task_id == task, among(Example.external_id, ids)) for task, ids in named))


def request_rebuild(
    session: Session, *, model: Model, erasure: Erasure, request: RebuildCreate, principal: Principal
) -> Update:
    """Requests the update that learns what is left on top of the last clean ancestor of the champion.

    Raises `Conflict` where the champion carries nothing of the subject, nothing is left to learn, or a rebuild is under
    way or done; and whatever a request for an update raises.
    """
    session.refresh(erasure, with_for_update=True)
    _require_no_rebuild(session, erasure=erasure)
    plan = plan_rebuild(session, model=model, tainted=tainted_versions(session, erasure=erasure))
    if plan is None:
        raise Conflict(
            f"There is nothing to rebuild: the champion of '{model.name}' carries nothing of the erased subject, or no rows "
            "are left of what it learnt since. In that case roll back to a clean version.",
            code="nothing_to_rebuild", param="erasure",
        )  # fmt: skip
    try:
        wanted = UpdateCreate(
            tasks=plan.tasks, parent=plan.parent, strategy=request.strategy, training=request.training,
            promotion=request.promotion, metadata={**request.metadata, "erasure": erasure.id},
        )  # fmt: skip
    except ValidationError as error:
        raise Unprocessable(
            f"No update can take this rebuild: {error.errors()[0]['msg']}. Its metadata also holds the erasure's id; more than a "
            "thousand tasks have to be learnt anew by updates of your own.",
            code="rebuild_too_large",
        ) from None
    rebuild = request_update(session, model=model.name, request=wanted, principal=principal)
    erasure.rebuild_id = rebuild.id
    session.flush()
    return rebuild


def _require_no_rebuild(session: Session, *, erasure: Erasure) -> None:
    if erasure.rebuild_id is None:
        return
    state = session.scalars(select(Update.state).where(Update.id == erasure.rebuild_id)).one()
    if state not in GAVE_UP:
        raise Conflict(
            f"The update {erasure.rebuild_id} rebuilds this erasure already; it is {state}.",
            code="rebuild_exists", param="erasure",
        )  # fmt: skip


def retire_versions(session: Session, *, model: Model, erasure: Erasure, principal: Principal) -> None:
    """Removes the adapters of every version that carries something of the subject; the versions stay as tombstones.

    Raises `Conflict` while an alias leads to one of them, or an update works from one or waits to be approved.
    """
    get_champion(session, model=model, lock=True)  # no alias moves to one of them meanwhile
    tainted = tainted_versions(session, erasure=erasure)
    _require_unused(session, model=model, versions=tainted)
    doomed = (
        Version.model_id == model.id,
        among(Version.number, tainted),
        Version.artifact_sha256.is_not(None),
    )
    hashes = session.execute(select(Version.artifact_sha256, Version.state_sha256).where(*doomed)).all()
    removed = sorted(session.scalars(select(Version.number).where(*doomed)))
    session.execute(
        update(Version)
        .where(*doomed)
        .values(
            artifact_sha256=None, artifact_bytes=None, state_sha256=None, state_bytes=None,
            artifact_removed_at=func.now(),
        )
    )  # fmt: skip
    discard_artifacts(session, {sha256 for row in hashes for sha256 in row if sha256})
    erasure.retired_at = func.now()
    session.flush()
    session.refresh(erasure)
    record(
        session, tenant=model.tenant_id, actor=principal.actor, action=AuditAction.VERSIONS_RETIRED, target=model.id,
        erasure=erasure.id, versions=removed,
    )  # fmt: skip


def _require_unused(session: Session, *, model: Model, versions: list[int]) -> None:
    named = session.execute(
        select(Alias.name, Alias.version)
        .where(Alias.model_id == model.id, among(Alias.version, versions))
        .order_by(Alias.name)
    ).all()
    if named:
        raise Conflict(
            f"Version {named[0].version} is '{named[0].name}'; move that alias to a clean version first.",
            code="version_in_use", param="erasure",
        )  # fmt: skip
    working = session.scalar(
        select(Update.id).where(
            Update.model_id == model.id,
            (Update.state.in_(ACTIVE) & among(Update.parent_version, versions))
            | (
                Update.state.in_(ACTIVE)
                & (Update.strategy == BLEND)
                & Update.parameters["of"].as_integer().in_(versions)
            )
            # Held, or being compared with a champion that moved.
            | (Update.state.in_((*ACTIVE, UpdateState.AWAITING_APPROVAL)) & among(Update.version, versions)),
        )
    ) or session.scalar(
        select(Dial.id).where(
            Dial.model_id == model.id, Dial.state == DialState.SCORING, among(Dial.version, versions)
        )
    )
    working = working or session.scalar(
        select(Forecast.id).where(
            Forecast.model_id == model.id,
            # One that waits for another attempt may have left something in a worker's scratch folder.
            (Forecast.state == LeasedState.SCORING)
            | ((Forecast.state == LeasedState.QUEUED) & (Forecast.fence > 0)),
            among(Forecast.parent_version, versions),
        )
    )
    if working is not None:
        raise Conflict(
            f"{working} works with one of these versions or waits to be approved; cancel or reject it, or wait for its end.",
            code="version_in_use", param="erasure",
        )  # fmt: skip
