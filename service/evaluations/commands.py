"""Writes of eval sets and scores."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.evaluations.outcomes import Outcomes, mean_score, pack
from service.models import EvalSet, Model, Score, new_id


def ensure_eval_set(session: Session, *, model: Model, task_id: str, example_ids: Sequence[int]) -> EvalSet:
    """Returns the eval set of exactly these examples, storing it when it is new.

    Sets are known by the digest of their ids: a task whose eval split did not change keeps its set.
    """
    digest = hashlib.sha256(np.asarray(example_ids, dtype="<i8").tobytes()).digest()
    session.execute(
        insert(EvalSet)
        .values(
            tenant_id=model.tenant_id, id=new_id("evs"), model_id=model.id, task_id=task_id, digest=digest,
            size=len(example_ids), example_ids=list(example_ids),
        )
        .on_conflict_do_nothing(index_elements=["tenant_id", "task_id", "digest"])
    )  # fmt: skip
    return session.scalars(select(EvalSet).where(EvalSet.task_id == task_id, EvalSet.digest == digest)).one()


def record_score(
    session: Session,
    *,
    model: Model,
    version: int,
    eval_set: EvalSet,
    outcomes: Outcomes,
    measures: Mapping[str, float] | None = None,
) -> None:
    """Stores what a version answered on an eval set; a second record of the same pair changes nothing."""
    packed = pack(outcomes, np.asarray(eval_set.example_ids, dtype=np.int64))
    session.execute(
        insert(Score)
        .values(
            tenant_id=model.tenant_id, model_id=model.id, version=version, eval_set_id=eval_set.id,
            task_id=eval_set.task_id, size=packed.size, score=mean_score(outcomes), correct=packed.correct,
            predicted=packed.predicted, confidence=packed.confidence, graded=packed.graded, measures=dict(measures or {}),
        )
        .on_conflict_do_nothing()
    )  # fmt: skip
