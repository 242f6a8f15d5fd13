"""run_update(): the whole story of one claimed update, top to bottom.

Prepare → train → score → judge → record and promote, reject or hold. No transaction is open while the child
trains or scores; the version with its scores, its admissions, the verdict and the promotion commit together.
"""

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy import update as update_rows
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from structlog import get_logger
from structlog.contextvars import bound_contextvars

from service.artifacts import get_store
from service.config import get_settings
from service.db import allow_statements_of, session_scope
from service.evaluations.gate import GatePolicy, Verdict, decide, to_json, what_happens
from service.examples.commands import hold_erasures
from service.examples.queries import count_stored, fresh_rows
from service.failpoints import reach
from service.models import BLEND, IMPORT, Model, Update, UpdateState, Version, VersionTask
from service.registry.commands import promote
from service.registry.disposal import hold_artifacts
from service.registry.queries import get_champion, get_model, get_version
from service.replay.commands import admit_examples
from service.tracing import mark_failed, span, traced
from service.updates import leases
from service.updates.leases import Claim
from service.updates.states import change_state
from service.version import VERSION
from workers.attempt_trace import attempt_span
from workers.blends import prepare_blend
from workers.child import Trainer
from workers.failures import DATABASE_ERRORS, PASSING, described, is_away, recordable, refused
from workers.imports import prepare_import, require_still_untainted
from workers.lease import Lease, LeaseLost
from workers.preparation import (
    Plan,
    StateErased,
    TaskSlice,
    TrainedOnErased,
    prepare_update,
    version_folder,
)
from workers.repeats import Course, measure_repeats, repeats_of
from workers.scoring import (
    Candidate,
    Key,
    Measured,
    Round,
    comparisons,
    plan_round,
    record_round,
    score_round,
)
from workers.training.contract import Progress, TrainResult
from workers.training.errors import Cancelled, Stopped
from workers.watchdog import Limits
from workers.workspace import leave_workspace, open_workspace, workspace_of

log = get_logger(__name__)
STATEMENT_SECONDS_OF_RECORDING = 600  # admissions of a large task are one long statement
# A champion that moves more often than this while one candidate is scored is left to another attempt.
MAX_ROUNDS = 10
PREPARATIONS = {BLEND: prepare_blend, IMPORT: prepare_import}  # of updates that train nothing


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained candidate, stored but not yet recorded."""

    plan: Plan
    result: TrainResult
    sha256: str
    bytes: int
    state: tuple[str, int] | None  # hash and size of what the strategy left for the next update
    provenance: dict[str, Any]
    repeats: dict[str, Any] | None = None  # what is told of the further seeds

    @property
    def artifacts(self) -> list[str]:
        """The hashes of everything stored of it."""
        return [self.sha256, *([self.state[0]] if self.state is not None else [])]


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
    """Scores against the champion and records the decision; again if the champion moves in between."""
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
            _keep(trained, work)  # no version refers to it yet, and long scoring makes it look like an orphan
        try:
            state = _record(claim, round_=round_, candidate=candidate, trained=trained)
        except DBAPIError as error:
            if not isinstance(error.orig, PASSING):
                raise
            continue
        if state is not None:
            reach("recorded")
            return state
    raise RuntimeError(f"champion or data changed {MAX_ROUNDS} times while the candidate was recorded")


def _keep(trained: Trained, work: Path) -> None:
    """Keeps the sweeper of orphans from a candidate's artifacts."""
    get_store().keep_folder(trained.sha256, Path(trained.plan.request.output))
    if trained.state is not None:
        get_store().keep_folder(trained.state[0], work / "state")


@traced("record")
def _record(
    claim: Claim, *, round_: Round, candidate: Candidate, trained: Trained | None
) -> UpdateState | None:
    """Commits version, scores, admissions, verdict and decision together; None when another round is needed."""
    with session_scope(tenant=claim.tenant, role="worker") as session:
        allow_statements_of(session, seconds=STATEMENT_SECONDS_OF_RECORDING)
        hold_erasures(session, model_id=claim.model_id)
        model = get_model(session, model=claim.model_id, lock=True)
        champion = get_champion(session, model=model, lock=True)
        if champion.version != round_.champion.number:
            return None
        number = candidate.number
        if number is None:
            if trained is None:
                raise RuntimeError("a candidate without a number was not trained here")
            if trained.plan.update.strategy == IMPORT:
                require_still_untainted(session, update=trained.plan.update)
            if not hold_artifacts(session, trained.artifacts):
                return None  # deleted with another's of the same content; the next round stores it again
            number = _insert_version(session, model=model, trained=trained, evaluation_seconds=round_.seconds)
        record_round(session, model=model, round_=round_, number=number)
        policy = GatePolicy(**model.gate)
        verdict = decide(policy, comparisons(session, model=model, round_=round_, number=number))
        if trained is not None and count_stored(session, trained.plan.trained_on) < len(
            trained.plan.trained_on
        ):
            raise TrainedOnErased
        if trained is not None and _parent_state(session, model, trained) != trained.plan.parent.state_sha256:
            raise TrainedOnErased
        held = leases.hold(session, claim=claim)
        if held is None:
            raise LeaseLost(claim.update_id)
        if held.cancel_requested_at is not None:
            raise Cancelled
        return _conclude(
            session, claim=claim, model=model, number=number, parent=candidate.parent.number,
            champion=champion.version, verdict=verdict, policy=policy, row=held,
        )  # fmt: skip


def _parent_state(session: Session, model: Model, trained: Trained) -> str | None:
    """What the parent's strategy has left by now: an erasure drops it."""
    return session.scalar(
        select(Version.state_sha256).where(
            Version.model_id == model.id, Version.number == trained.plan.parent.number
        )
    )


def _conclude(
    session: Session, *, claim: Claim, model: Model, number: int, parent: int, champion: int, verdict: Verdict,
    policy: GatePolicy, row: Update,
) -> UpdateState:  # fmt: skip
    """Promotes, rejects or holds. A champion that is not the candidate's parent moved meanwhile: a person decides."""
    step = what_happens(
        verdict,
        row.promotion,  # type: ignore[arg-type]  # checked on entry
        policy.on_inconclusive,
        champion_moved=claim.rescore or champion != parent,
    )
    if champion == number:  # a person made the candidate champion while it was scored again
        step = "promote"
    if step == "promote":
        kind = "promoted" if verdict.decision == "pass" else "forced"
        actor = "gate" if row.promotion == "gate" else row.requested_by
        reason = f"verdict: {verdict.decision}; promotion: {row.promotion}"
        promote(
            session, model=model, version=number, kind="forced" if kind == "forced" else "promoted",
            actor=actor, reason=reason, update_id=row.id,
        )  # fmt: skip
    states = {
        "promote": UpdateState.PROMOTED,
        "hold": UpdateState.AWAITING_APPROVAL,
        "reject": UpdateState.REJECTED,
    }
    data = {"version": number, "compared_with": champion, "verdict": verdict.decision}
    changed = change_state(
        session, update_id=row.id, to=states[step], only_from=[UpdateState.EVALUATING], fence=claim.fence, data=data,
        version=number, compared_with=champion, verdict=to_json(verdict), rescore_requested_at=None, error=None,
        decided_by=None if step == "hold" else "gate",
    )  # fmt: skip
    if changed is None:
        raise LeaseLost(claim.update_id)
    reach("before_record")
    return states[step]


def _insert_version(session: Session, *, model: Model, trained: Trained, evaluation_seconds: float) -> int:
    """Inserts the version under the model's next number, what it learnt, and its replay admissions."""
    plan = trained.plan
    number = session.scalars(
        update_rows(Model)
        .where(Model.id == model.id)
        .values(last_version=Model.last_version + 1)
        .returning(Model.last_version)
    ).one()
    statistics = {
        key: value for key, value in asdict(trained.result).items() if key not in ("labels", "packages")
    } | {"evaluation_seconds": evaluation_seconds}
    if trained.repeats is not None:
        statistics["repeats"] = trained.repeats
    session.add(
        Version(
            tenant_id=model.tenant_id, model_id=model.id, number=number, parent=plan.parent.number,
            lineage=[*plan.parent.lineage, number], update_id=plan.update.id, strategy=plan.update.strategy,
            parameters=plan.update.parameters, training=plan.update.training, cut=plan.update.cut,
            labels=list(trained.result.labels), artifact_sha256=trained.sha256, artifact_bytes=trained.bytes,
            state_sha256=trained.state and trained.state[0], state_bytes=trained.state and trained.state[1],
            statistics=statistics, provenance=trained.provenance,
        )
    )  # fmt: skip
    session.flush()
    for piece in plan.slices:
        rows = admit_examples(
            session, model=model, version=number, task=piece.name, examples=_learnt(session, piece)
        )
        session.add(
            VersionTask(
                tenant_id=model.tenant_id, model_id=model.id, version=number, task_id=piece.task_id,
                after_batch=piece.after, up_to_batch=piece.up_to, rows=rows,
            )
        )  # fmt: skip
    session.flush()
    return number


def _learnt(session: Session, piece: TaskSlice) -> Any:
    return fresh_rows(session, task_id=piece.task_id, after_batch=piece.after, up_to_batch=piece.up_to)


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
