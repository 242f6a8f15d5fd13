"""Requests for updates, and people's decisions on them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.audit.commands import record
from service.config import get_settings
from service.db import among
from service.errors import Conflict, TooManyRequests, Unprocessable
from service.evaluations.gate import GatePolicy, eval_size_warnings, graded_size_warnings
from service.examples.queries import eval_sizes, has_fresh, visible_labels
from service.models import AuditAction, Model, Task, Update, UpdateState, Version, VersionTask, new_id
from service.queue import nudge_after_commit
from service.registry.commands import promote
from service.registry.queries import get_champion, get_model, get_version, require_artifact
from service.replay.queries import count_strata
from service.request_context import request_id
from service.security import Principal, Scope
from service.tasks.queries import get_tasks
from service.tracing import current_traceparent
from service.updates.catalogue import check_strategy, strategies
from service.updates.queries import get_update
from service.updates.schemas import UpdateCreate
from service.updates.states import ACTIVE, FINISHED, change_state, record_event


def request_update(session: Session, *, model: str, request: UpdateCreate, principal: Principal) -> Update:
    """Stores an update request with its data cut and nudges the workers after the commit.

    Raises `NotFound` for an unknown model or task; `Unprocessable` for an unknown strategy, parent, a task
    without train or eval rows, or nothing new to learn; `TooManyRequests` past the tenant's queue limit.
    """
    if request.promotion == "always":
        principal.require(Scope.DEPLOY)
    row = get_model(session, model=model, for_change=True, hold=True)
    check_queue(session, tenant=row.tenant_id)
    update, _ = draft_update(session, model=row, request=request, principal=principal)
    return queue_update(session, update=update)


def draft_update(
    session: Session, *, model: Model, request: UpdateCreate, principal: Principal
) -> tuple[Update, Version]:
    """Returns the update that a request asks for, checked and with its data cut but not stored, and its parent as of now.

    Raises what `request_update` does, queue and scopes aside.
    """
    parameters = check_strategy(request.strategy, model=model, devices=request.training.devices)
    _check_boost(model, request=request)
    _check_repeats(request)
    tasks = get_tasks(session, model=model, names=list(dict.fromkeys(request.tasks)), hold=True)
    parent = starting_version(session, model=model, parent=request.parent)
    cut = model.last_batch
    warnings = _check_data(session, model=model, tasks=tasks, parent=parent, cut=cut, request=request)
    update = Update(
        tenant_id=model.tenant_id, id=new_id("upd"), model_id=model.id, task_ids=[task.id for task in tasks],
        strategy=request.strategy.name, parameters=parameters, training=_training(request),
        replay=request.replay.model_dump(), parent=str(request.parent), relearn=request.relearn, promotion=request.promotion,
        user_metadata=request.metadata, cut=cut, warnings=warnings, requested_by=principal.actor,
        request_id=request_id(), traceparent=current_traceparent(), state=UpdateState.QUEUED,
        max_attempts=get_settings().max_attempts,
    )  # fmt: skip
    return update, parent


def queue_update(session: Session, *, update: Update) -> Update:
    """Stores a new update with its first event, nudges the workers after the commit, and returns it as stored."""
    session.add(update)
    session.flush()
    session.refresh(update)
    record_event(
        session,
        update=update,
        type_=UpdateState.QUEUED,
        data={"by": update.requested_by, "request_id": update.request_id},
    )
    nudge_after_commit(session)
    return update


def _check_boost(model: Model, *, request: UpdateCreate) -> None:
    """Raises `Unprocessable` where a boost could change nothing."""
    if request.replay.boost == "none":
        return
    strategy = strategies()[request.strategy.name]
    if not strategy.needs_replay:
        fault = f"the strategy '{strategy.name}' rehearses nothing; choose one that does"
    elif model.replay["policy"] == "reservoir":
        fault = "the replay policy 'reservoir' keeps no shares by task and label; a model with policy 'balanced' does"
    else:
        return
    raise Unprocessable(
        f"replay.boost cannot apply: {fault}.", code="boost_not_applicable", param="replay.boost"
    )


def _check_repeats(request: UpdateCreate) -> None:
    """Raises `Unprocessable` where every seed would give the same."""
    strategy = strategies()[request.strategy.name]
    if request.training.repeats > 1 and not strategy.seeded:
        raise Unprocessable(
            f"The strategy '{strategy.name}' draws nothing at random: every seed gives the very same version, so there is "
            "no noise to measure. Leave training.repeats at 1.",
            code="repeats_not_applicable", param="training.repeats",
        )  # fmt: skip


def _training(request: UpdateCreate) -> dict[str, Any]:
    """The training settings as they are stored; workers of the release before know nothing of repeats."""
    return request.training.model_dump(exclude={"repeats"} if request.training.repeats == 1 else None)


def check_queue(session: Session, *, tenant: str) -> None:
    """Raises `TooManyRequests` where the tenant has as many updates queued as it may."""
    limit = get_settings().max_queued_updates_per_tenant
    queued = session.scalar(
        select(func.count())
        .select_from(Update)
        .where(Update.tenant_id == tenant, Update.state == UpdateState.QUEUED)
    )
    if (queued or 0) >= limit:
        raise TooManyRequests(
            f"{queued} updates are queued already, the limit is {limit}; wait for some to finish or cancel them.",
            code="too_many_queued_updates", headers={"Retry-After": "30"},
        )  # fmt: skip


def starting_version(session: Session, *, model: Model, parent: str | int) -> Version:
    """Returns the version to start from, the champion of now or that of a number.

    Raises `Unprocessable` for one that does not exist and `Conflict` for one whose adapter was removed.
    """
    if isinstance(parent, str):
        number = get_champion(session, model=model).version
    elif parent > model.last_version:
        raise Unprocessable(
            f"The parent version {parent} does not exist; the newest version of '{model.name}' is {model.last_version}.",
            code="parent_not_found", param="parent",
        )  # fmt: skip
    else:
        number = parent
    version = get_version(session, model=model, version=number)
    require_artifact(model, version)
    return version


def _check_data(
    session: Session, *, model: Model, tasks: Sequence[Task], parent: Version, cut: int, request: UpdateCreate
) -> list[str]:
    """Returns the request's warnings; raises `Unprocessable` where the update could not be run or judged."""
    warnings = []
    any_fresh = False
    _require_rows(session, tasks=tasks, cut=cut)
    for task in tasks:
        after = (
            0 if request.relearn else learnt_up_to(session, model=model, lineage=parent.lineage, task=task)
        )
        if has_fresh(session, task_id=task.id, after_batch=after, up_to_batch=cut):
            any_fresh = True
        else:
            warnings.append(f"task '{task.name}' has no rows that version {parent.number} has not learnt")
    starts_from_base = strategies()[request.strategy.name].starts_from == "base"
    if not any_fresh and not starts_from_base:
        raise Unprocessable(
            f"Version {parent.number} has learnt every row of {', '.join(task.name for task in tasks)} already. "
            "Add examples, or set relearn: true to take the rows again.",
            code="nothing_to_learn", param="tasks",
        )  # fmt: skip
    warnings += _label_warnings(session, tasks=tasks, parent=parent, cut=cut)
    if strategies()[request.strategy.name].needs_replay:
        warnings += _buffer_warnings(session, model=model, parent=parent)
    if request.replay.boost != "none":
        warnings += _boost_warnings(session, model=model, parent=parent)
    return warnings + gate_warnings(session, model=model, parent=parent, cut=cut)


def _buffer_warnings(session: Session, *, model: Model, parent: Version) -> list[str]:
    capacity = int(model.replay["capacity"])
    strata = count_strata(session, model=model, lineage=parent.lineage)
    if strata <= capacity:
        return []
    return [
        f"the replay buffer holds {capacity} examples but version {parent.number} has learnt {strata} kinds of them (task "
        f"and label), so {strata - capacity} cannot be rehearsed; PATCH the model's replay.capacity"
    ]


def _boost_warnings(session: Session, *, model: Model, parent: Version) -> list[str]:
    """Whether all that was learnt stands in the buffer anyway, so that there are no shares to change."""
    capacity = int(model.replay["capacity"])
    learnt = session.scalar(
        select(func.sum(VersionTask.rows)).where(
            VersionTask.model_id == model.id, among(VersionTask.version, parent.lineage)
        )
    )
    if int(learnt or 0) > capacity:
        return []
    return [
        f"replay.boost changes nothing: all {int(learnt or 0)} examples that version {parent.number} has learnt fit into the "
        f"replay buffer of {capacity} and are rehearsed"
    ]


def _label_warnings(session: Session, *, tasks: Sequence[Task], parent: Version, cut: int) -> list[str]:
    warnings = []
    for task in tasks:
        learnable = visible_labels(session, task_id=task.id, split="train", cut=cut) | set(parent.labels)
        warnings += [
            f"task '{task.name}': the label '{label}' has eval examples but no train examples, so every one of "
            "them will count as wrong; a misspelt label?"
            for label in sorted(visible_labels(session, task_id=task.id, split="eval", cut=cut) - learnable)
        ]
    return warnings


def _require_rows(session: Session, *, tasks: Sequence[Task], cut: int) -> None:
    sizes = eval_sizes(session, task_ids=[task.id for task in tasks], cut=cut)
    for task in tasks:
        if not has_fresh(session, task_id=task.id, after_batch=0, up_to_batch=cut):
            raise Unprocessable(
                f"The task '{task.name}' has no train examples, so nothing can be learnt from it. POST examples to it.",
                code="no_train_data", param="tasks",
            )  # fmt: skip
        if sizes[task.id] == 0:
            raise Unprocessable(
                f"The task '{task.name}' has no eval data, so what is learnt could not be measured. POST examples with "
                '"split": "eval" (without a split, one row in ten becomes eval by itself).',
                code="no_eval_data", param="tasks",
            )  # fmt: skip


def gate_warnings(session: Session, *, model: Model, parent: Version, cut: int) -> list[str]:
    """Returns a sentence for every task whose eval set is too small for the gate to pass a child of `parent` on it, or nearly so."""
    old = session.execute(
        select(Task.id, Task.name)
        .join(VersionTask, (VersionTask.task_id == Task.id))
        .where(
            VersionTask.model_id == model.id,
            among(VersionTask.version, parent.lineage),
            Task.deleted_at.is_(None),
        )
        .distinct()
    )
    guarded = session.execute(
        select(Task.id, Task.name).where(Task.model_id == model.id, Task.guarded, Task.deleted_at.is_(None))
    )
    judged = {task_id: name for task_id, name in [*old, *guarded]}  # noqa: C416  # rows are no pairs to mypy
    if not judged:
        return []
    counted = eval_sizes(session, task_ids=list(judged), cut=cut)
    sizes = {name: counted[task_id] for task_id, name in judged.items()}
    warned = graded_size_warnings if model.is_graded else eval_size_warnings
    return warned(GatePolicy(**model.gate), sizes)


def learnt_up_to(session: Session, *, model: Model, lineage: Sequence[int], task: Task) -> int:
    """Returns the last ingest batch of `task` that the lineage has learnt, 0 where it never learnt the task."""
    learnt = session.scalar(
        select(func.max(VersionTask.up_to_batch)).where(
            VersionTask.model_id == model.id,
            among(VersionTask.version, lineage),
            VersionTask.task_id == task.id,
        )
    )
    return learnt or 0


def cancel_update(session: Session, *, update_id: str, actor: str) -> Update:
    """Cancels an update: at once where no worker holds it, else at the worker's next step.

    Raises `Conflict` for a finished update; cancelling one that is being cancelled changes nothing.
    """
    update = get_update(session, update_id=update_id, lock=True)
    if update.state in FINISHED:
        raise Conflict(
            f"The update is {update.state} and can no longer be cancelled.", code="update_finished"
        )
    if update.state in ACTIVE:
        if update.cancel_requested_at is None:
            update.cancel_requested_at = session.scalar(select(func.now()))
            record_event(session, update=update, type_="cancel_requested", data={"by": actor})
        return update
    return (
        change_state(
            session, update_id=update.id, to=UpdateState.CANCELLED, data={"by": actor}, decided_by=actor
        )
        or update
    )


def approve_update(session: Session, *, update_id: str, actor: str, reason: str | None) -> Update:
    """Promotes a held candidate. Raises `Conflict` when it is not held, or was compared with another champion."""
    update = get_update(session, update_id=update_id)
    # Model, champion, update: everywhere in this order, for two orders would deadlock.
    model = get_model(session, model=update.model_id, for_change=True, lock=True)
    champion = get_champion(session, model=model, lock=True)
    update = get_update(session, update_id=update_id, lock=True)
    _require_held(update)
    if champion.version != update.compared_with:
        raise Conflict(
            f"The champion is version {champion.version} now, but the verdict compares with version "
            f"{update.compared_with}. The candidate is being scored against the new champion; read the update "
            "again in a moment and decide then.",
            code="verdict_stale", headers={"Retry-After": "10"},
        )  # fmt: skip
    require_artifact(model, get_version(session, model=model, version=update.version or 0))
    promote(
        session,
        model=model,
        version=update.version or 0,
        kind="approved",
        actor=actor,
        reason=reason,
        update_id=update.id,
    )
    return _decide(session, update=update, to=UpdateState.PROMOTED, actor=actor, reason=reason)


def reject_update(session: Session, *, update_id: str, actor: str, reason: str | None) -> Update:
    """Rejects a held candidate; its version stays readable. Raises `Conflict` when it is not held."""
    update = get_update(session, update_id=update_id, lock=True)
    _require_held(update)
    record(
        session, tenant=update.tenant_id, actor=actor, action=AuditAction.CANDIDATE_REJECTED, target=update.id,
        version=update.version, reason=reason,
    )  # fmt: skip
    return _decide(session, update=update, to=UpdateState.REJECTED, actor=actor, reason=reason)


def _require_held(update: Update) -> None:
    if update.state != UpdateState.AWAITING_APPROVAL:
        raise Conflict(
            f"The update is {update.state}; only one that is awaiting_approval can be decided.",
            code="not_awaiting_approval",
        )


def _decide(session: Session, *, update: Update, to: UpdateState, actor: str, reason: str | None) -> Update:
    decided = change_state(
        session, update_id=update.id, to=to, only_from=[UpdateState.AWAITING_APPROVAL],
        data={"by": actor, "reason": reason}, decided_by=actor, rescore_requested_at=None,
    )  # fmt: skip
    if decided is None:
        raise RuntimeError(f"update {update.id} changed under its own lock")
    return decided
