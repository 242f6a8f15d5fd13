"""run_dial(): the whole story of one claimed dial. Nothing is trained.

Plan → the ends, from stored scores → per point: add up, score, record. Every point commits by itself, so that whoever
takes a dial over goes on from there; recording one twice changes nothing.
"""

import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.config import get_settings
from service.db import among, session_scope
from service.dials.commands import record_point
from service.dials.leases import DIALS
from service.dials.points import CHILD, PARENT
from service.evaluations.commands import ensure_eval_set
from service.evaluations.outcomes import Outcomes
from service.evaluations.queries import load_outcomes, newest_eval_sets, stored_scores
from service.examples.queries import rows_by_id
from service.failpoints import reach
from service.leased_rows import RowClaim
from service.models import Dial, DialScore, EvalSet, Model, Version
from service.registry.queries import get_version, require_artifact, task_names
from workers.blends import blend_request
from workers.child import Trainer
from workers.lease import Lease, LeaseLost
from workers.leased_work import carry
from workers.preparation import base_folder, write_rows
from workers.scoring import Measured, as_outcomes
from workers.training import contract
from workers.watchdog import Limits


@dataclass(frozen=True, slots=True)
class DialPlan:
    """Everything fixed before a point is scored."""

    model: Model
    parent: Version
    child: Version
    eval_sets: tuple[EvalSet, ...]
    parent_outcomes: Mapping[str, Outcomes]  # by eval set; empty for a base without a head
    missing: tuple[float, ...]  # the points between the ends that are not there on all of the sets


def run_dial(claim: RowClaim, *, stopping: threading.Event) -> None:
    """Carries one claimed dial as far as it goes, and leaves the row in a state that says how far that was."""
    carry(DIALS, claim, _work, stopping=stopping)


def _work(claim: RowClaim, lease: Lease, work: Path) -> None:
    plan = _plan(claim, work)
    _score(claim, plan, lease, work)
    with session_scope(tenant=claim.tenant, role="worker") as session:
        DIALS.finish(session, claim=claim)


def _plan(claim: RowClaim, work: Path) -> DialPlan:
    """Notes which eval sets are scored on, records the ends from what is stored, and writes the eval rows."""
    with session_scope(tenant=claim.tenant, role="worker") as session:
        model = session.get_one(Model, {"tenant_id": claim.tenant, "id": claim.model_id})
        asked = session.get_one(Dial, {"tenant_id": claim.tenant, "id": claim.row_id})
        child = get_version(session, model=model, version=asked.version)
        parent = get_version(session, model=model, version=child.parent or 0)
        for side in (parent, child):
            require_artifact(model, side)
        eval_sets = _eval_sets(session, model=model, child=child, work=work)
        dial = DIALS.hold(session, claim=claim)
        if dial is None:
            raise LeaseLost(claim.row_id)
        dial.eval_set_ids = [eval_set.id for eval_set in eval_sets]
        ends = _Ends.of(session, model=model, parent=parent, child=child, eval_sets=eval_sets)
        ends.record(session, dial=dial)
        return DialPlan(
            model=model, parent=parent, child=child, eval_sets=eval_sets, parent_outcomes=ends.of_parent(),
            missing=_missing(session, dial=dial),
        )  # fmt: skip


def _eval_sets(session: Session, *, model: Model, child: Version, work: Path) -> tuple[EvalSet, ...]:
    """The newest set of each task that the version was scored on, without examples that were erased since."""
    found = []
    names = task_names(session, model=model)
    for stored in newest_eval_sets(session, model=model, version=child.number):
        rows = list(rows_by_id(session, stored.example_ids))
        if not rows:
            continue
        eval_set = ensure_eval_set(
            session, model=model, task_id=stored.task_id, example_ids=[row.id for row in rows]
        )
        write_rows(_rows_of(eval_set, work), rows, names=names)
        found.append(eval_set)
    return tuple(found)


def _rows_of(eval_set: EvalSet, work: Path) -> Path:
    return work / f"eval-{eval_set.id}.ndjson"


def _missing(session: Session, *, dial: Dial) -> tuple[float, ...]:
    there: dict[float, int] = dict.fromkeys(dial.betas, 0)
    stored = select(DialScore.beta).where(
        DialScore.dial_id == dial.id, among(DialScore.eval_set_id, dial.eval_set_ids)
    )
    for beta in session.scalars(stored):
        there[beta] = there.get(beta, 0) + 1
    return tuple(
        beta for beta in dial.betas if PARENT < beta < CHILD and there[beta] < len(dial.eval_set_ids)
    )


@dataclass(frozen=True, slots=True)
class _Ends:
    """What the parent and the version answered on the dial's eval sets, as it is stored."""

    eval_sets: tuple[EvalSet, ...]
    answers: Mapping[tuple[float, str], Measured]  # by β and eval set
    scores: Mapping[tuple[float, str], float]

    @classmethod
    def of(
        cls,
        session: Session,
        *,
        model: Model,
        parent: Version,
        child: Version,
        eval_sets: tuple[EvalSet, ...],
    ) -> "_Ends":
        numbers = {PARENT: parent.number, CHILD: child.number}
        tasks = [eval_set.task_id for eval_set in eval_sets]
        outcomes = load_outcomes(session, model=model, versions=numbers.values(), task_ids=tasks)
        aggregates = {
            (score.version, score.eval_set_id): score
            for score in stored_scores(session, model=model, versions=numbers.values(), task_ids=tasks)
        }
        answers, scores = {}, {}
        for beta, number in numbers.items():
            for eval_set in eval_sets:
                known = _on(eval_set, outcomes.get((number, eval_set.task_id)))
                if known is None:
                    continue
                stored = aggregates.get((number, eval_set.id))
                answers[beta, eval_set.id] = Measured(known, stored.measures if stored else {})
                if stored:
                    scores[beta, eval_set.id] = stored.score
        return cls(eval_sets, answers, scores)

    def of_parent(self) -> dict[str, Outcomes]:
        """The parent's answers by eval set."""
        return {key: measured.outcomes for (beta, key), measured in self.answers.items() if beta == PARENT}

    def record(self, session: Session, *, dial: Dial) -> None:
        """Stores them as the dial's ends."""
        parents, sets = self.of_parent(), {eval_set.id: eval_set for eval_set in self.eval_sets}
        for (beta, key), measured in self.answers.items():
            record_point(
                session, dial=dial, beta=beta, eval_set=sets[key], outcomes=measured.outcomes,
                parent=parents.get(key), measures=measured.measures, score=self.scores.get((beta, key)),
            )  # fmt: skip


def _on(eval_set: EvalSet, outcomes: Outcomes | None) -> Outcomes | None:
    """The outcomes on the examples of a set alone, in its order; None where they do not cover it."""
    if outcomes is None:
        return None
    place = {int(example): at for at, example in enumerate(outcomes.example_ids)}
    at = [place[example] for example in eval_set.example_ids if example in place]
    if len(at) < eval_set.size:
        return None
    graded = None if outcomes.graded is None else outcomes.graded[at]
    return Outcomes(
        example_ids=np.asarray(eval_set.example_ids, dtype=np.int64), correct=outcomes.correct[at],
        predicted=outcomes.predicted[at], confidence=outcomes.confidence[at], graded=graded,
    )  # fmt: skip


def _score(claim: RowClaim, plan: DialPlan, lease: Lease, work: Path) -> None:
    if not plan.missing or not plan.eval_sets:
        return
    settings = get_settings()
    with Trainer(Limits(settings.progress_timeout_seconds, settings.memory_limit_bytes)) as trainer:
        for beta in plan.missing:
            made = _score_point(beta, plan, trainer, lease, work)
            lease.check()
            _record(claim, plan, beta, made)
            reach("dial_point_recorded")


def _score_point(
    beta: float, plan: DialPlan, trainer: Trainer, lease: Lease, work: Path
) -> dict[str, Measured]:
    """Adds parent and version up at β, and scores the sum on every eval set, by eval set."""
    output = work / "point"
    shutil.rmtree(output, ignore_errors=True)
    request = blend_request(
        plan.model, parent=plan.parent, child=plan.child, parameters={"beta": beta, "of": plan.child.number},
        lineage={"parent": plan.parent.number}, work=work, output=output,
    )  # fmt: skip
    trainer.train(request, on_progress=lease.report, watch=lease.watch)
    made = {}
    for eval_set in plan.eval_sets:
        evaluation = contract.EvaluateRequest(
            task_type=plan.model.task_type, base=base_folder(plan.model.base_model), version=str(output),
            rows=str(_rows_of(eval_set, work)), batch_size=request.settings.evaluation_batch_size,
        )  # fmt: skip
        answer = trainer.evaluate(evaluation, on_progress=lease.report, watch=lease.watch)
        made[eval_set.id] = Measured(as_outcomes(answer), answer.measures)
    return made


def _record(claim: RowClaim, plan: DialPlan, beta: float, made: Mapping[str, Measured]) -> None:
    with session_scope(tenant=claim.tenant, role="worker") as session:
        dial = DIALS.hold(session, claim=claim)
        if dial is None:
            raise LeaseLost(claim.row_id)
        for eval_set in plan.eval_sets:
            measured = made[eval_set.id]
            record_point(
                session, dial=dial, beta=beta, eval_set=eval_set, outcomes=measured.outcomes,
                parent=plan.parent_outcomes.get(eval_set.id), measures=measured.measures,
            )  # fmt: skip
