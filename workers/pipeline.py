"""run_update(): the whole story of one claimed update, top to bottom.

Prepare → train → score → judge → record and promote, reject or hold. No transaction is open while the child
trains or scores; the version with its scores, its admissions, the verdict and the promotion commit together.
"""

import threading
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from structlog import get_logger
from structlog.contextvars import bound_contextvars

from service.artifacts import get_store
from service.config import get_settings
from service.db import session_scope
from service.failpoints import reach
from service.models import BLEND, IMPORT, Model, Update, UpdateState
from service.registry.queries import get_version
from service.tracing import mark_failed, span
from service.updates import leases
from service.updates.leases import Claim
from service.version import VERSION
from workers.attempt_trace import attempt_span
from workers.blends import prepare_blend
from workers.child import Trainer
from workers.failures import DATABASE_ERRORS, PASSING, described, is_away, recordable, refused
from workers.imports import prepare_import
from workers.lease import Lease, LeaseLost
from workers.preparation import (
    Plan,
    StateErased,
    TrainedOnErased,
    prepare_update,
    version_folder,
)
from workers.recording import Trained, keep_artifacts, record_candidate
from workers.repeats import Course, measure_repeats, repeats_of
from workers.scoring import (
    Candidate,
    Key,
    Measured,
    plan_round,
    score_round,
)
from workers.training.contract import Progress, TrainResult
from workers.training.errors import Cancelled, Stopped
from workers.watchdog import Limits
from workers.workspace import leave_workspace, open_workspace, workspace_of

log = get_logger(__name__)
# A champion that moves more often than this while one candidate is scored is left to another attempt.
MAX_ROUNDS = 10
PREPARATIONS = {BLEND: prepare_blend, IMPORT: prepare_import}  # of updates that train nothing


def run_update(claim: Claim, *, stopping: threading.Event) -> None:
    """Carries one claimed update as far as it goes, and leaves the row in a state that says how far that was."""
    context = {
        "tenant": claim.tenant, "update": claim.update_id, "attempt": claim.attempt, "fence": claim.fence,
        "request_id": claim.request_id,
    }  # fmt: skip
    with bound_contextvars(**context), attempt_span(claim):
        _carry(claim, stopping=stopping)


def _carry(claim: Claim, *, stopping: threading.Event) -> None:
    log.info("update_claimed", rescore=claim.rescore)
    work = workspace_of(claim)
    with Lease(claim, stopping=stopping) as lease:
        try:
            keep = _work(claim, lease, work)
        except DATABASE_ERRORS as error:
            # The sweeper takes the update back when the lease runs out; until then nothing can be written anyway.
            log.warning("database_failed", error=str(error).splitlines()[0])
            keep = True
    leave_workspace(work, keep=keep)


def _work(claim: Claim, lease: Lease, work: Path) -> bool:
    """Does the work of an attempt, or records why it ended early; returns whether its folder is needed again."""
    try:
        reach("claimed")
        open_workspace(claim)
        outcome = _rescore(claim, lease, work) if claim.rescore else _learn(claim, lease, work)
    except (LeaseLost, Cancelled, Stopped, TrainedOnErased) as end:
        return _end_early(claim, lease, end)
    except DATABASE_ERRORS as error:
        if is_away(error):
            raise
        return _fail(claim, refused(error)) in (UpdateState.QUEUED, None)
    except Exception as error:
        return _fail(claim, error) in (UpdateState.QUEUED, None)  # None: another worker's by now
    log.info("update_finished", outcome=outcome)
    return False


def _learn(claim: Claim, lease: Lease, work: Path) -> UpdateState:
    """A new update: train a candidate, then judge it."""
    try:
        plan = PREPARATIONS.get(claim.strategy, prepare_update)(claim, work=work)
    except StateErased:
        raise TrainedOnErased from None
    reach("prepared")
    folder, course = Path(plan.request.output), Course(repeats_of(plan.update))
    taught = frozenset(piece.task_id for piece in plan.slices)
    candidate = Candidate(number=None, folder=folder, parent=plan.parent, taught=taught)
    with Trainer(_limits()) as trainer:
        with span("train", attributes={"palimpsest.strategy": plan.update.strategy}):
            result = trainer.train(
                plan.request, on_progress=lambda now: lease.report(course.overall(now)), watch=lease.watch
            )
        reach("trained")
        lease.check()
        repeats = measure_repeats(
            claim, plan=plan, result=result, candidate=candidate, lease=lease, work=work, trainer=trainer, course=course
        )  # fmt: skip
        with span("store"):
            state = _put_state(folder, work)
            sha256, size = get_store().put_folder(folder)
        reach("artifact_stored")
        lease.report(Progress(phase="evaluating"))
        with session_scope(tenant=claim.tenant, role="worker") as session:
            if not leases.begin_evaluating(session, claim=claim):
                raise LeaseLost(claim.update_id)
            reach("before_evaluating")
        reach("evaluating")
        trained = Trained(
            plan=plan,
            result=result,
            sha256=sha256,
            bytes=size,
            state=state,
            provenance=_provenance(plan, result),
            repeats=repeats,
        )
        return _judge(
            claim, lease, work, trainer=trainer, model=plan.model, candidate=candidate, trained=trained
        )


def _put_state(folder: Path, work: Path) -> tuple[str, int] | None:
    """Stores the strategy's state apart from the version, so that an erasure can drop it and leave the version whole."""
    apart = work / "state"
    if not (folder / "state").exists():
        return None
    (folder / "state").rename(apart)
    return get_store().put_folder(apart)


def _rescore(claim: Claim, lease: Lease, work: Path) -> UpdateState:
    """A held candidate whose champion moved: compare it with the new one. The child starts only if it must score."""
    with session_scope(tenant=claim.tenant, role="worker") as session:
        model = session.get_one(Model, {"tenant_id": claim.tenant, "id": claim.model_id})
        update = session.get_one(Update, {"tenant_id": claim.tenant, "id": claim.update_id})
        version = get_version(session, model=model, version=update.version or 0)
        parent = get_version(session, model=model, version=version.parent or 0)
        taught = frozenset(update.task_ids)
    folder = version_folder(version, work=work)
    candidate = Candidate(number=version.number, folder=folder, parent=parent, taught=taught)
    with Trainer(_limits()) as trainer:
        return _judge(claim, lease, work, trainer=trainer, model=model, candidate=candidate, trained=None)


def _judge(
    claim: Claim,
    lease: Lease,
    work: Path,
    *,
    trainer: Trainer,
    model: Model,
    candidate: Candidate,
    trained: Trained | None,
) -> UpdateState:
    """Scores against the champion and records the decision; again if the champion moves, or its artifacts go, in between."""
    made: dict[Key, Measured] = {}
    batch_size = trained.plan.request.settings.evaluation_batch_size if trained else 64
    for _ in range(MAX_ROUNDS):
        round_ = plan_round(claim, candidate=candidate, work=work)
        score_round(
            model=model, round_=round_, candidate=candidate, made_before=made, evaluator=trainer, lease=lease,
            work=work, batch_size=batch_size,
        )  # fmt: skip
        made |= round_.made
        reach("scored")
        lease.check()
        if trained is not None:
            # No version refers to it yet, and long scoring makes it look like an orphan.
            keep_artifacts(trained, work)
        try:
            state = record_candidate(claim, round_=round_, candidate=candidate, trained=trained)
        except DBAPIError as error:
            if not isinstance(error.orig, PASSING):
                raise
            continue
        if state is not None:
            reach("recorded")
            return state
    raise RuntimeError(
        f"champion, data or artifacts changed {MAX_ROUNDS} times while the candidate was recorded"
    )


def _provenance(plan: Plan, result: TrainResult) -> dict[str, Any]:
    return {
        "palimpsest": VERSION,
        "code_revision": get_settings().code_revision,
        "packages": result.packages,
        "device": result.device,
        "base_model": plan.request.base.name,
        "base_revision": plan.request.base.revision,
        "replay": plan.request.lineage["replay"],
        **({"import": plan.request.lineage["import"]} if plan.update.strategy == IMPORT else {}),
    }


def _end_early(claim: Claim, lease: Lease, end: LeaseLost | Cancelled | Stopped | TrainedOnErased) -> bool:
    """Records a cancellation, a graceful stop or a fresh start; returns whether the work folder is needed again."""
    if lease.lost or isinstance(end, LeaseLost):
        log.warning("lease_lost")
        return True
    with session_scope(tenant=claim.tenant, role="worker") as session:
        if isinstance(end, TrainedOnErased):
            reason = (
                "an example that it counts as trained on was erased meanwhile; it is prepared again"
                if claim.strategy == IMPORT
                else "an example was erased while it was trained on; training starts again without it"
            )
            leases.give_back(session, claim=claim, reason=reason)
            return False
        if isinstance(end, Stopped):
            leases.give_back(session, claim=claim, reason="the worker is stopping; its checkpoint is kept")
            return True
        leases.cancel_claimed(session, claim=claim)
        return False


def _fail(claim: Claim, error: Exception) -> UpdateState | None:
    """Counts the failed attempt; an error that another attempt cannot mend fails the update at once."""
    failure = described(error)
    mark_failed(failure.code)
    log.error(
        "attempt_failed",
        code=failure.code,
        error=recordable(str(error)),
        exc_info=error if failure.unexpected else None,
    )
    with session_scope(tenant=claim.tenant, role="worker") as session:
        return leases.fail_attempt(
            session, claim=claim, code=failure.code, message=failure.message, final=failure.final
        )


def _limits() -> Limits:
    settings = get_settings()
    return Limits(settings.progress_timeout_seconds, settings.memory_limit_bytes)
