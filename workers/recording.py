"""The one commit of an update: version, number, scores, admissions, verdict and decision, together or not at all."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy import update as update_rows
from sqlalchemy.orm import Session

from service.artifacts import get_store
from service.db import allow_statements_of, session_scope
from service.evaluations.gate import GatePolicy, Verdict, decide, to_json, what_happens
from service.examples.commands import hold_erasures
from service.examples.queries import count_stored, fresh_rows
from service.failpoints import reach
from service.models import IMPORT, Model, Update, UpdateState, Version, VersionTask
from service.registry.commands import promote
from service.registry.disposal import hold_artifacts
from service.registry.queries import get_champion, get_model
from service.replay.commands import admit_examples
from service.tracing import traced
from service.updates import leases
from service.updates.leases import Claim
from service.updates.states import change_state
from workers.imports import require_still_untainted
from workers.lease import LeaseLost
from workers.preparation import Plan, TaskSlice, TrainedOnErased
from workers.scoring import Candidate, Round, comparisons, record_round
from workers.training.contract import TrainResult
from workers.training.errors import Cancelled

STATEMENT_SECONDS_OF_RECORDING = 600  # admissions of a large task are one long statement


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


def keep_artifacts(trained: Trained, work: Path) -> None:
    """Keeps the sweeper of orphans from a candidate's artifacts."""
    get_store().keep_folder(trained.sha256, Path(trained.plan.request.output))
    if trained.state is not None:
        get_store().keep_folder(trained.state[0], work / "state")


@traced("record")
def record_candidate(
    claim: Claim, *, round_: Round, candidate: Candidate, trained: Trained | None
) -> UpdateState | None:
    """Commits version, scores, admissions, verdict and decision together; None when another round is needed."""
    with session_scope(tenant=claim.tenant, role="worker") as session:
        allow_statements_of(session, seconds=STATEMENT_SECONDS_OF_RECORDING)
        if trained is not None and not hold_artifacts(session, trained.artifacts):
            return None  # deleted with another's of the same content; the next round stores it again
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
            number = _insert_version(session, model=model, trained=trained, evaluation_seconds=round_.seconds)
        record_round(session, model=model, round_=round_, number=number)
        policy = GatePolicy(**model.gate)
        verdict = decide(policy, comparisons(session, model=model, round_=round_, number=number))
        if trained is not None:
            _require_all_is_stored(session, model, trained)
        held = leases.hold(session, claim=claim)
        if held is None:
            raise LeaseLost(claim.update_id)
        if held.cancel_requested_at is not None:
            raise Cancelled
        return _conclude(
            session, claim=claim, model=model, number=number, parent=candidate.parent.number,
            champion=champion.version, verdict=verdict, policy=policy, row=held,
        )  # fmt: skip


def _require_all_is_stored(session: Session, model: Model, trained: Trained) -> None:
    """Raises `TrainedOnErased` where a row that the candidate learnt is gone, or its parent's state, which an erasure drops."""
    learnt, parent = trained.plan.trained_on, trained.plan.parent
    this = Version.model_id == model.id, Version.number == parent.number
    if count_stored(session, learnt) < len(learnt):
        raise TrainedOnErased
    if session.scalar(select(Version.state_sha256).where(*this)) != parent.state_sha256:
        raise TrainedOnErased


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
