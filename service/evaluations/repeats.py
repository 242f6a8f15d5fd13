"""What the further seeds of an update answered: stored seed by seed while it trains, read by its version's report."""

from collections.abc import Collection

import numpy as np
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db import among
from service.evaluations.outcomes import Outcomes, PackedOutcomes, mean_score, pack, unpack
from service.models import EvalSet, RepeatScore, Update

SeedOutcomes = dict[int, dict[str, Outcomes]]
"""Outcomes by seed and task id."""


def forget_other_repeats(session: Session, *, update_id: str, basis: str) -> None:
    """Deletes what was measured on another basis: other rows or another parent say nothing of this update's noise."""
    session.execute(
        delete(RepeatScore).where(RepeatScore.update_id == update_id, RepeatScore.basis != basis),
        execution_options={"synchronize_session": False},
    )


def scored_seeds(session: Session, *, update_id: str, eval_sets: Collection[str]) -> set[int]:
    """Returns the seeds that were scored on every one of these eval sets."""
    rows = session.scalars(
        select(RepeatScore.seed)
        .where(RepeatScore.update_id == update_id, among(RepeatScore.eval_set_id, eval_sets))
        .group_by(RepeatScore.seed)
        .having(func.count() == len(eval_sets))
    )
    return set(rows)


def record_repeat(
    session: Session, *, update: Update, seed: int, basis: str, eval_set: EvalSet, outcomes: Outcomes
) -> None:
    """Stores what one seed answered on an eval set; a second record of the same changes nothing."""
    packed = pack(outcomes, np.asarray(eval_set.example_ids, dtype=np.int64))
    session.execute(
        insert(RepeatScore)
        .values(
            tenant_id=update.tenant_id, update_id=update.id, seed=seed, eval_set_id=eval_set.id,
            task_id=eval_set.task_id, basis=basis, size=packed.size, score=mean_score(outcomes), correct=packed.correct,
            predicted=packed.predicted, confidence=packed.confidence, graded=packed.graded,
        )
        .on_conflict_do_nothing()
    )  # fmt: skip


def load_repeats(session: Session, *, update_id: str | None) -> SeedOutcomes:
    """Returns what the update's further seeds answered, on the eval set of each task that they were scored on last."""
    rows = session.execute(
        select(RepeatScore, EvalSet.example_ids)
        .join(EvalSet, (EvalSet.tenant_id == RepeatScore.tenant_id) & (EvalSet.id == RepeatScore.eval_set_id))
        .where(RepeatScore.update_id == update_id)
        .order_by(RepeatScore.created_at, RepeatScore.eval_set_id)
    )
    found: SeedOutcomes = {}
    for score, ids in rows:
        found.setdefault(score.seed, {})[score.task_id] = _unpacked(score, ids)
    return found


def _unpacked(score: RepeatScore, ids: list[int]) -> Outcomes:
    packed = PackedOutcomes(
        size=score.size, correct=score.correct, predicted=score.predicted, confidence=score.confidence,
        graded=score.graded,
    )  # fmt: skip
    return unpack(packed, np.asarray(ids, dtype=np.int64))
