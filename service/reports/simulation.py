"""Another policy, the same evidence: what the gate would have said of updates that are over, without training."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import NotFound
from service.evaluations.comparing import compare, role_of
from service.evaluations.gate import Comparison, GatePolicy, decide, to_json, what_happens
from service.evaluations.outcomes import Outcomes
from service.evaluations.queries import load_outcomes
from service.models import Model, Task, Update, Version, VersionTask
from service.registry.queries import get_model
from service.registry.schemas import GateSpec
from service.reports.schemas import (
    GateSimulation,
    GateSimulationRequest,
    SimulatedVerdict,
    SimulationSummary,
    Verdict,
)


def simulate_gate(session: Session, *, model: str, request: GateSimulationRequest) -> GateSimulation:
    """Judges versions once more under another policy; changes nothing.

    Raises `NotFound` for a version that no update made.
    """
    row = get_model(session, model=model)
    spec = GateSpec.model_validate({**row.gate, **request.changes})
    policy = GatePolicy(**spec.model_dump())
    learnt = _tasks_by_version(session, model=row)
    names = _task_names(session, model=row)
    judged = [
        _judge(session, model=row, update=update, policy=policy, learnt=learnt, names=names, request=request)
        for update in _updates(session, model=row, request=request)
    ]
    return GateSimulation(model=row.name, policy=spec, data=judged, summary=_summary(judged))


def _judge(
    session: Session,
    *,
    model: Model,
    update: Update,
    policy: GatePolicy,
    learnt: Mapping[int, frozenset[str]],
    names: Mapping[str, Task],
    request: GateSimulationRequest,
) -> SimulatedVerdict:
    number, champion = update.version or 0, update.compared_with or 0
    compared = _comparisons(
        session, model=model, number=number, champion=champion, learnt=learnt, names=names, policy=policy
    )
    verdict = decide(policy, compared)
    before = (update.verdict or {}).get("decision")
    return SimulatedVerdict(
        version=number,
        update=update.id,
        compared_with=champion,
        status=update.state,
        decision_then=before,
        verdict=Verdict.model_validate(to_json(verdict)),
        outcome=what_happens(
            verdict,
            request.promotion,
            policy.on_inconclusive,
            champion_moved=update.parent_version != champion,
        ),
        changed=before != verdict.decision,
    )


def _comparisons(
    session: Session,
    *,
    model: Model,
    number: int,
    champion: int,
    learnt: Mapping[int, frozenset[str]],
    names: Mapping[str, Task],
    policy: GatePolicy,
) -> list[Comparison]:
    """The candidate beside the champion it was judged against, on every task that either had learnt or was guarded."""
    lineages = _lineages(session, model=model, versions={number, champion})
    taught = learnt.get(number, frozenset())
    earlier = {version for lineage in lineages.values() for version in lineage} - {number}
    known = frozenset().union(*(learnt.get(version, frozenset()) for version in earlier))
    outcomes = load_outcomes(session, model=model, versions={number, champion}, task_ids=list(names))
    guarded = frozenset(
        task_id for task_id, task in names.items() if task.guarded and (number, task_id) in outcomes
    )
    wanted = sorted((known | taught | guarded) & names.keys(), key=lambda task_id: names[task_id].name)
    return [
        compare(
            names[task_id].name,
            role_of(task_id, learnt=known | guarded, taught=taught),
            size=_size(outcomes, task_id, number, champion),
            candidate=outcomes.get((number, task_id)),
            champion=outcomes.get((champion, task_id)),
            confidence=policy.confidence,
        )
        for task_id in wanted
    ]


def _size(outcomes: Mapping[tuple[int, str], Outcomes], task_id: str, *versions: int) -> int:
    return max(len(outcomes.get((version, task_id), ())) for version in versions)


def _updates(session: Session, *, model: Model, request: GateSimulationRequest) -> Sequence[Update]:
    """The judged updates of the versions asked for, or of the newest ones; by version."""
    statement = select(Update).where(Update.model_id == model.id, Update.verdict.is_not(None))
    if request.versions is None:
        newest = session.scalars(statement.order_by(Update.version.desc()).limit(request.limit)).all()
        return sorted(newest, key=lambda update: update.version or 0)
    found = session.scalars(
        statement.where(Update.version.in_(request.versions)).order_by(Update.version)
    ).all()
    missing = sorted(set(request.versions) - {update.version for update in found})
    if missing:
        raise NotFound(
            f"The gate has never judged version {missing[0]} of {model.name!r}: no update made it, or it does not exist.",
            code="not_judged",
            param="versions",
        )
    return found


def _lineages(session: Session, *, model: Model, versions: set[int]) -> dict[int, list[int]]:
    rows = session.execute(
        select(Version.number, Version.lineage).where(
            Version.model_id == model.id, Version.number.in_(versions)
        )
    )
    return {number: list(lineage) for number, lineage in rows}


def _tasks_by_version(session: Session, *, model: Model) -> dict[int, frozenset[str]]:
    found: dict[int, set[str]] = {}
    for version, task_id in session.execute(
        select(VersionTask.version, VersionTask.task_id).where(VersionTask.model_id == model.id)
    ):
        found.setdefault(version, set()).add(task_id)
    return {version: frozenset(tasks) for version, tasks in found.items()}


def _task_names(session: Session, *, model: Model) -> dict[str, Task]:
    tasks = session.scalars(select(Task).where(Task.model_id == model.id, Task.deleted_at.is_(None)))
    return {task.id: task for task in tasks}


def _summary(judged: Sequence[SimulatedVerdict]) -> SimulationSummary:
    outcomes = [entry.outcome for entry in judged]
    return SimulationSummary(
        promote=outcomes.count("promote"),
        hold=outcomes.count("hold"),
        reject=outcomes.count("reject"),
        changed=sum(entry.changed for entry in judged),
    )
