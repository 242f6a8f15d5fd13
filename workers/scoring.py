"""Scoring a candidate against the champion: which eval sets, which versions, and what they answered."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import session_scope
from service.evaluations.commands import ensure_eval_set, record_score
from service.evaluations.comparing import compare, role_of
from service.evaluations.gate import Comparison, Role
from service.evaluations.outcomes import Outcomes
from service.evaluations.queries import is_scored, load_outcomes
from service.examples.queries import eval_ids, rows_by_id
from service.models import EvalSet, Model, Task, Update, Version, VersionTask
from service.registry.queries import get_champion, get_version
from service.tracing import traced
from service.updates.leases import Claim
from workers.child import Trainer
from workers.lease import Lease
from workers.preparation import base_folder, version_folder, write_rows
from workers.training import contract

CANDIDATE = -1  # stands for the candidate's number while it has none
Key = tuple[int, str]  # version number, eval set id


@dataclass(frozen=True, slots=True)
class Candidate:
    """The version under judgement: trained just now (no number yet), or held and scored again."""

    number: int | None
    folder: Path
    parent: Version
    taught: frozenset[str]  # ids of the tasks the update taught

    @property
    def key(self) -> int:
        """The number under which its outcomes are kept here."""
        return CANDIDATE if self.number is None else self.number


@dataclass(frozen=True, slots=True)
class EvalTask:
    """One task the candidate is judged on."""

    task_id: str
    name: str
    role: Role
    eval_set: EvalSet
    rows: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """What a version answered on an eval set, with further aggregates by name."""

    outcomes: Outcomes
    measures: Mapping[str, float]


@dataclass(slots=True)
class Round:
    """One comparison with one champion: its eval sets, and every outcome known or made for them."""

    champion: Version
    tasks: list[EvalTask]
    unmeasured: list[Comparison] = field(default_factory=list)  # tasks without an eval row
    made: dict[Key, Measured] = field(default_factory=dict)
    seconds: float = 0.0  # spent by the child on the outcomes made in this round


def plan_round(claim: Claim, *, candidate: Candidate, work: Path) -> Round:
    """Reads the present champion and writes the eval rows of every task that candidate or champion has learnt."""
    with session_scope(tenant=claim.tenant, role="worker") as session:
        model = session.get_one(Model, {"tenant_id": claim.tenant, "id": claim.model_id})
        update = session.get_one(Update, {"tenant_id": claim.tenant, "id": claim.update_id})
        champion = get_version(session, model=model, version=get_champion(session, model=model).version)
        cut = max(update.cut, champion.cut, candidate.parent.cut)
        learnt = _learnt_tasks(session, model=model, versions={*candidate.parent.lineage, *champion.lineage})
        learnt |= _guarded_tasks(session, model=model)
        confidence = float(model.gate["confidence"])
        wanted = learnt | candidate.taught
        tasks = session.scalars(
            select(Task).where(Task.id.in_(wanted), Task.deleted_at.is_(None)).order_by(Task.name)
        )
        planned, unmeasured = [], []
        for task in tasks.all():
            role = role_of(task.id, learnt=learnt, taught=candidate.taught)
            ids = eval_ids(session, task_id=task.id, cut=cut)
            if not ids:  # erased or not there yet, all of them: the gate must know that nothing was measured
                unmeasured.append(
                    compare(task.name, role, size=0, candidate=None, champion=None, confidence=confidence)
                )
                continue
            eval_set = ensure_eval_set(session, model=model, task_id=task.id, example_ids=ids)
            path = work / f"eval-{eval_set.id}.ndjson"
            write_rows(path, rows_by_id(session, ids), names={task.id: task.name})
            planned.append(EvalTask(task_id=task.id, name=task.name, role=role, eval_set=eval_set, rows=path))
    return Round(champion=champion, tasks=planned, unmeasured=unmeasured)


def _learnt_tasks(session: Session, *, model: Model, versions: Iterable[int]) -> frozenset[str]:
    return frozenset(
        session.scalars(
            select(VersionTask.task_id).where(
                VersionTask.model_id == model.id, VersionTask.version.in_(list(versions))
            )
        )
    )


def _guarded_tasks(session: Session, *, model: Model) -> frozenset[str]:
    return frozenset(session.scalars(select(Task.id).where(Task.model_id == model.id, Task.guarded)))


@traced("evaluate")
def score_round(
    *,
    model: Model,
    round_: Round,
    candidate: Candidate,
    made_before: Mapping[Key, Measured],
    evaluator: Trainer,
    lease: Lease,
    work: Path,
    batch_size: int,
) -> None:
    """Scores candidate, champion and parent wherever they have no stored score on the round's eval sets.

    Outcomes of an earlier round (with another champion) are taken over, not made again.
    """
    for version, folder in _contestants(candidate, model=model, champion=round_.champion, work=work):
        for task in round_.tasks:
            key = (version, task.eval_set.id)
            if key in made_before:
                round_.made[key] = made_before[key]
            elif not _stored(model, version=version, eval_set=task.eval_set):
                request = evaluation_of(folder, model=model, task=task, batch_size=batch_size)
                answer = evaluator.evaluate(request, on_progress=lease.report, watch=lease.watch)
                round_.made[key] = Measured(as_outcomes(answer), answer.measures)
                round_.seconds += answer.seconds


def evaluation_of(
    folder: Path | None, *, model: Model, task: EvalTask, batch_size: int
) -> contract.EvaluateRequest:
    """Returns what the child needs to score a version's folder, or the untouched base, on a task's eval set."""
    return contract.EvaluateRequest(
        task_type=model.task_type, base=base_folder(model.base_model), version=str(folder) if folder else None,
        rows=str(task.rows), batch_size=batch_size,
    )  # fmt: skip


def _contestants(
    candidate: Candidate, *, model: Model, champion: Version, work: Path
) -> list[tuple[int, Path | None]]:
    """Candidate, champion and parent with their folders, each once; the base of a language model has none.

    The base of a classifier has no head and so no answers. That of a language model is always scored: what it could
    do without any update is what forward transfer and the loss of general ability are measured from.
    """
    versions: dict[int, Path | None] = {candidate.key: candidate.folder}
    if model.is_graded:
        versions[0] = None
    for version in (champion, candidate.parent):
        if version.artifact_sha256 is not None and version.number not in versions:
            versions[version.number] = version_folder(version, work=work)
    return list(versions.items())


def _stored(model: Model, *, version: int, eval_set: EvalSet) -> bool:
    if version == CANDIDATE:
        return False
    with session_scope(tenant=model.tenant_id, role="worker") as session:
        return is_scored(session, model=model, version=version, eval_set_id=eval_set.id)


def as_outcomes(answer: contract.Outcomes) -> Outcomes:
    """Returns the child's answer as the compact arrays the service stores."""
    return Outcomes(
        example_ids=np.asarray(answer.example_ids, dtype=np.int64),
        correct=np.asarray(answer.correct, dtype=np.bool_),
        predicted=np.asarray(answer.predicted, dtype=np.int32),
        confidence=np.asarray(answer.confidence, dtype=np.float32),
        graded=np.asarray(answer.graded, dtype=np.float32) if answer.graded else None,
    )


def record_round(session: Session, *, model: Model, round_: Round, number: int) -> None:
    """Stores every outcome made in the round; the candidate's under its number."""
    sets = {task.eval_set.id: task.eval_set for task in round_.tasks}
    for (version, eval_set_id), measured in round_.made.items():
        record_score(
            session, model=model, version=number if version == CANDIDATE else version,
            eval_set=sets[eval_set_id], outcomes=measured.outcomes, measures=measured.measures,
        )  # fmt: skip
    session.flush()


def comparisons(session: Session, *, model: Model, round_: Round, number: int) -> list[Comparison]:
    """Returns candidate against champion on every task of the round, from the stored outcomes."""
    champion = round_.champion.number
    outcomes = load_outcomes(
        session, model=model, versions={number, champion}, task_ids=[task.task_id for task in round_.tasks]
    )
    confidence = float(model.gate["confidence"])
    measured = [
        compare(
            task.name,
            task.role,
            size=task.eval_set.size,
            candidate=outcomes.get((number, task.task_id)),
            champion=outcomes.get((champion, task.task_id)),
            confidence=confidence,
        )
        for task in round_.tasks
    ]
    return measured + round_.unmeasured
