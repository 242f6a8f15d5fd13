"""Versions with hand-written answers, for tests of what stands on outcomes; nothing is trained."""

from collections.abc import Mapping, Sequence

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import session_scope
from service.evaluations.commands import ensure_eval_set, record_score
from service.evaluations.outcomes import Outcomes
from service.examples.queries import fresh_rows
from service.models import Example, Model, Version, VersionTask
from service.registry.queries import get_model
from service.replay.commands import admit_examples
from service.tasks.queries import get_task

Answer = tuple[str, float]  # the label and its confidence
LABELS = ["a", "b", "c"]


def add_version(
    number: int,
    *,
    answers: Mapping[str, Mapping[str, Answer]] | None = None,
    learns: str | None = None,
    lineage: Sequence[int] | None = None,
    model: str = "triage",
) -> None:
    """Adds a version of the tenant `acme` that learnt a task's train rows and answered eval examples, by task and id.

    Its lineage is every version before it unless said otherwise.
    """
    with session_scope(tenant="acme", role="worker") as session:
        row = get_model(session, model=model)
        line = [*range(number + 1)] if lineage is None else list(lineage)
        session.add(
            Version(
                tenant_id="acme", model_id=row.id, number=number, parent=line[-2], lineage=line, parameters={},
                training={}, cut=row.last_batch, labels=LABELS, statistics={}, provenance={},
            )
        )  # fmt: skip
        row.last_version = number
        session.flush()
        if learns is not None:
            _learn(session, model=row, number=number, task=learns)
        for task, given in (answers or {}).items():
            _score(session, model=row, number=number, task=task, answers=given)


def _learn(session: Session, *, model: Model, number: int, task: str) -> None:
    task_id = get_task(session, model=model, task=task).id
    rows = fresh_rows(session, task_id=task_id, after_batch=0, up_to_batch=model.last_batch)
    admitted = admit_examples(session, model=model, version=number, task=task, examples=rows)
    session.add(
        VersionTask(
            tenant_id="acme", model_id=model.id, version=number, task_id=task_id, after_batch=0,
            up_to_batch=model.last_batch, rows=admitted,
        )
    )  # fmt: skip


def _score(session: Session, *, model: Model, number: int, task: str, answers: Mapping[str, Answer]) -> None:
    task_id = get_task(session, model=model, task=task).id
    rows = session.scalars(
        select(Example)
        .where(Example.task_id == task_id, Example.external_id.in_(answers))
        .order_by(Example.id)
    ).all()
    given = [answers[str(row.external_id)] for row in rows]
    outcomes = Outcomes(
        example_ids=np.array([row.id for row in rows]),
        correct=np.array([label == row.label for row, (label, _) in zip(rows, given, strict=True)]),
        predicted=np.array([LABELS.index(label) for label, _ in given]),
        confidence=np.array([confidence for _, confidence in given]),
    )
    eval_set = ensure_eval_set(session, model=model, task_id=task_id, example_ids=[row.id for row in rows])
    record_score(session, model=model, version=number, eval_set=eval_set, outcomes=outcomes)
