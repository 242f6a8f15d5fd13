"""Reads of dials: how far they are, and what their points scored."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import among
from service.dials.points import (
    CHILD,
    PARENT,
    DialColumn,
    PointDocument,
    Scored,
    point_document,
    recommended_beta,
)
from service.dials.schemas import DialRead
from service.errors import NotFound
from service.evaluations.gate import GatePolicy
from service.models import Dial, DialScore, DialState, Model, Version
from service.registry.queries import get_model, get_version
from service.reports.queries import Lineage, read_lineage, role_at, taught_by


def find_dial(session: Session, *, model: Model, version: int, lock: bool = False) -> Dial | None:
    """Returns a version's dial, if it was ever asked for; its row locked to the transaction's end if wanted."""
    statement = select(Dial).where(Dial.model_id == model.id, Dial.version == version)
    if lock:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    return session.scalar(statement)


def read_dial(session: Session, *, model: str, version: int) -> DialRead:
    """Returns a version's dial. Raises `NotFound`, also where nobody has asked for it yet."""
    row = get_model(session, model=model)
    found = get_version(session, model=row, version=version)
    dial = find_dial(session, model=row, version=version)
    if dial is None:
        where = f"/v1/models/{row.name}/versions/{version}/dial"
        raise NotFound(
            f"Nobody has asked for the dial of version {version} yet; POST {where} has it scored.",
            code="dial_not_found", param="version",
        )  # fmt: skip
    return describe_dial(session, model=row, version=found, dial=dial)


def describe_dial(session: Session, *, model: Model, version: Version, dial: Dial) -> DialRead:
    """Returns a dial in its public shape, with every point that is there on all of its eval sets."""
    points = _point_documents(session, model=model, version=version, dial=dial)
    done = dial.state == DialState.DONE
    return DialRead.model_validate(
        {
            **{name: getattr(dial, name) for name in (
                "version", "betas", "gate", "max_attempts", "error", "requested_by", "requested_at", "finished_at")},
            "model": model.name,
            "parent": version.parent,
            "status": dial.state,
            "points": points,
            "recommended_beta": recommended_beta(points) if done else None,
            "attempt": min(dial.attempts_used + (dial.state != DialState.FAILED), dial.max_attempts),
        }
    )  # fmt: skip


def _point_documents(session: Session, *, model: Model, version: Version, dial: Dial) -> list[PointDocument]:
    points = _scored(session, dial=dial)
    lineage = read_lineage(session, model=model, version=version)
    columns = _columns(session, model=model, version=version, lineage=lineage, points=points)
    if not dial.eval_set_ids or CHILD not in points:
        return []
    points.setdefault(PARENT, {})  # the base of a classifier, which has no answers
    return [
        point_document(
            beta, points, columns=columns, matrix=lineage.matrix, learnt_at=lineage.learnt_at,
            policy=GatePolicy(**dial.gate), logarithmic=model.is_graded,
        )
        for beta in dial.betas
        if beta == PARENT or len(points.get(beta, {})) == len(dial.eval_set_ids)
    ]  # fmt: skip


def _scored(session: Session, *, dial: Dial) -> dict[float, dict[str, Scored]]:
    """What every point scored on the dial's present eval sets, by β and task id."""
    rows = session.execute(
        select(
            DialScore.beta, DialScore.task_id, DialScore.size, DialScore.score, DialScore.correct,
            DialScore.interval, DialScore.change, DialScore.measures,
        )
        .where(DialScore.dial_id == dial.id, among(DialScore.eval_set_id, dial.eval_set_ids))
    )  # fmt: skip
    points: dict[float, dict[str, Scored]] = {}
    for beta, task_id, size, score, correct, (low, high), change, measures in rows:
        bounds = None if change is None else (change[0], change[1])
        points.setdefault(beta, {})[task_id] = Scored(size, score, correct, (low, high), bounds, measures)
    return points


def _columns(
    session: Session,
    *,
    model: Model,
    version: Version,
    lineage: Lineage,
    points: dict[float, dict[str, Scored]],
) -> Sequence[DialColumn]:
    """The lineage's tasks that the version was scored on, and the old ones that it could not be, in the order they were learnt."""
    taught = taught_by(session, model=model, version=version)
    scored, last = points.get(CHILD, {}), len(lineage.versions) - 1
    columns = []
    for column, task in enumerate(lineage.tasks):
        learnt_at = lineage.learnt_at[column]
        role = role_at(learnt_at, last_row=last, taught=task.id in taught)
        guards = learnt_at is not None and learnt_at < last
        if task.id in scored or guards:  # an old task nobody can measure is inconclusive, as to the gate
            columns.append(DialColumn(task.id, task.name, role, column, guards))
    return columns
