"""Requests for blends: updates whose version lies between another one and its parent."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.config import get_settings
from service.errors import Gone, Unprocessable
from service.models import BLEND, Model, Task, Update, UpdateState, Version, VersionTask, new_id
from service.registry.queries import get_champion, get_model, get_version
from service.request_context import request_id
from service.security import Principal, Scope
from service.tracing import current_traceparent
from service.updates.catalogue import require_applicable, strategies
from service.updates.commands import check_queue, gate_warnings, queue_update
from service.updates.schemas import BlendCreate, ReplayRequest


def request_blend(
    session: Session, *, model: str, version: int, request: BlendCreate, principal: Principal
) -> Update:
    """Stores a request for the version β of the way from a version's parent to it, and nudges the workers.

    The cut is that of now, so that the blend is scored on the eval examples of now, like any update of now; what it has
    learnt is what the version has. Raises `NotFound`, `Unprocessable`, `Gone` (see `sides_of`) and `TooManyRequests`.
    """
    if request.promotion == "always":
        principal.require(Scope.DEPLOY)
    row = get_model(session, model=model, for_change=True, hold=True)
    child, parent = sides_of(session, model=row, version=version)
    check_queue(session, tenant=row.tenant_id)
    update = Update(
        tenant_id=row.tenant_id, id=new_id("upd"), model_id=row.id,
        task_ids=taught_tasks(session, model=row, version=child), strategy=BLEND,
        parameters={"beta": request.beta, "of": child.number}, training=_without_repeats(child.training),
        replay=ReplayRequest(boost="none").model_dump(), parent=str(parent.number), relearn=False,
        promotion=request.promotion, user_metadata=request.metadata, cut=row.last_batch,
        warnings=_warnings(session, model=row, parent=parent), requested_by=principal.actor, request_id=request_id(),
        traceparent=current_traceparent(), state=UpdateState.QUEUED, max_attempts=get_settings().max_attempts,
    )  # fmt: skip
    return queue_update(session, update=update)


def _without_repeats(training: Mapping[str, Any]) -> dict[str, Any]:
    """A sum of two versions: no seed takes part, whatever the version was trained with."""
    return {name: value for name, value in training.items() if name != "repeats"}


def sides_of(session: Session, *, model: Model, version: int) -> tuple[Version, Version]:
    """Returns a version and its parent, between which there are others.

    Raises `NotFound`; `Unprocessable` for the base, which has no parent, and for adapters that cannot be added up; `Gone`
    where one of the two adapters was removed.
    """
    child = get_version(session, model=model, version=version)
    if child.parent is None:
        raise Unprocessable(
            "Version 0 is the untouched base. It has no parent, so there is nothing between the two.",
            code="no_parent", param="version",
        )  # fmt: skip
    require_applicable(strategies()[BLEND], model=model, param="version")
    parent = get_version(session, model=model, version=child.parent)
    for side in (child, parent):
        if side.artifact_removed_at is not None:
            raise Gone(
                f"The adapter of version {side.number} was removed, by the model's retention or an erasure.",
                code="artifact_removed", param="version",
            )  # fmt: skip
    return child, parent


def taught_tasks(session: Session, *, model: Model, version: Version) -> list[str]:
    """Returns the ids of the tasks that a version learnt, deleted ones left out, by name."""
    return list(
        session.scalars(
            select(VersionTask.task_id)
            .join(Task, Task.id == VersionTask.task_id)
            .where(
                VersionTask.model_id == model.id,
                VersionTask.version == version.number,
                Task.deleted_at.is_(None),
            )
            .order_by(Task.name)
        )
    )


def _warnings(session: Session, *, model: Model, parent: Version) -> list[str]:
    warnings = gate_warnings(session, model=model, parent=parent, cut=model.last_batch)
    champion = get_champion(session, model=model).version
    if champion != parent.number:
        warnings.append(
            f"the champion is version {champion} and not the blend's parent, version {parent.number}: unless that changes, "
            "a person decides on the blend"
        )
    return warnings
