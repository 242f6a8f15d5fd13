"""Reads of scores: what versions answered, example by example."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, literal, select
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.orm import Session

from service.db import among
from service.evaluations.flip_history import FlipHistory, ScoredSet, flip_history
from service.evaluations.outcomes import Outcomes, PackedOutcomes, carried_scores, mean_score, unpack
from service.models import EvalSet, Model, Score, Task

Pair = tuple[int, str]  # version number, task id


@dataclass(frozen=True, slots=True)
class StoredScore:
    """The aggregate of one stored score."""

    version: int
    task_id: str
    eval_set_id: str
    score: float
    size: int
    measures: Mapping[str, float]


def stored_scores(
    session: Session, *, model: Model, versions: Iterable[int], task_ids: Iterable[str]
) -> list[StoredScore]:
    """Returns the aggregates of all scores of these versions on these tasks, oldest first."""
    measured = func.nullif(
        Score.measures, literal({}, JSONB)
    )  # most have none, and parsing ten thousand of those shows
    rows = session.execute(
        select(Score.version, Score.task_id, Score.eval_set_id, Score.score, Score.size, measured)
        .where(
            Score.model_id == model.id, Score.version.in_(list(versions)), Score.task_id.in_(list(task_ids))
        )
        .order_by(Score.created_at, Score.eval_set_id)
    )
    return [
        StoredScore(version, task_id, eval_set_id, score, size, measures or {})
        for version, task_id, eval_set_id, score, size, measures in rows
    ]


def newest_eval_sets(session: Session, *, model: Model, version: int) -> list[EvalSet]:
    """Returns the eval set that the version was scored on last, of every task that still stands, by task name."""
    newest = (
        select(Score.eval_set_id)
        .where(Score.model_id == model.id, Score.version == version)
        .ext(distinct_on(Score.task_id))
        .order_by(Score.task_id, Score.created_at.desc())
    )
    return list(
        session.scalars(
            select(EvalSet)
            .join(Task, Task.id == EvalSet.task_id)
            .where(EvalSet.id.in_(newest.scalar_subquery()), Task.deleted_at.is_(None))
            .order_by(Task.name)
        )
    )


def is_scored(session: Session, *, model: Model, version: int, eval_set_id: str) -> bool:
    """Says whether the version was scored on that very eval set."""
    found = session.scalar(
        select(Score.size).where(
            Score.model_id == model.id, Score.version == version, Score.eval_set_id == eval_set_id
        )
    )
    return found is not None


def load_outcomes(
    session: Session, *, model: Model, versions: Iterable[int], task_ids: Iterable[str]
) -> dict[Pair, Outcomes]:
    """Returns per-example outcomes by (version, task id), over every eval set the pair was scored on.

    An example scored more than once (the eval set grew between) counts once: answers do not change.
    """
    rows = session.execute(
        select(Score, EvalSet.example_ids)
        .join(EvalSet, (EvalSet.tenant_id == Score.tenant_id) & (EvalSet.id == Score.eval_set_id))
        .where(
            Score.model_id == model.id, Score.version.in_(list(versions)), Score.task_id.in_(list(task_ids))
        )
        .order_by(Score.created_at, Score.eval_set_id)
    )
    found: dict[Pair, Outcomes] = {}
    for score, ids in rows:
        packed = PackedOutcomes(
            size=score.size,
            correct=score.correct,
            predicted=score.predicted,
            confidence=score.confidence,
            graded=score.graded,
        )
        outcomes = unpack(packed, np.asarray(ids, dtype=np.int64))
        pair = (score.version, score.task_id)
        found[pair] = outcomes if pair not in found else _union(found[pair], outcomes)
    return found


def load_flip_histories(
    session: Session, *, model: Model, lineage: Sequence[int], task_ids: Iterable[str]
) -> dict[str, FlipHistory]:
    """Returns how the eval examples of these tasks turned along a lineage, by task id.

    Reads a bit per answer, and the ids of every eval set once however many versions were scored on it.
    """
    wanted = list(task_ids)
    rows = session.execute(
        select(Score.task_id, Score.eval_set_id, Score.version, Score.correct).where(
            Score.model_id == model.id, among(Score.version, lineage), among(Score.task_id, wanted)
        )
    ).all()
    ids = session.execute(
        select(EvalSet.id, EvalSet.example_ids).where(EvalSet.id.in_({row.eval_set_id for row in rows}))
    )
    sets = {set_id: ScoredSet(np.asarray(example_ids, dtype=np.int64), [], []) for set_id, example_ids in ids}
    scored: dict[str, dict[str, ScoredSet]] = {task_id: {} for task_id in wanted}
    for task_id, set_id, version, correct in rows:
        one = scored[task_id].setdefault(set_id, sets[set_id])
        one.versions.append(version)
        one.correct.append(correct)
    return {task_id: flip_history(lineage, of_task.values()) for task_id, of_task in scored.items()}


def _union(earlier: Outcomes, later: Outcomes) -> Outcomes:
    ids, first = np.unique(np.concatenate([later.example_ids, earlier.example_ids]), return_index=True)

    def column(name: str) -> np.ndarray:
        joined: np.ndarray = np.concatenate([getattr(later, name), getattr(earlier, name)])[first]
        return joined

    return Outcomes(
        example_ids=ids,
        correct=column("correct"),
        predicted=column("predicted"),
        confidence=column("confidence"),
        graded=None if earlier.graded is None or later.graded is None else column("graded"),
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """A lineage's score matrix twice: one row per version, one column per task, None where there is no score.

    `own` is what each version scored on all its eval examples. `carried` is the same brought to the examples of the
    last version (`outcomes.carried_scores`), so that cells of a column may be subtracted; where no eval
    set grew, both are equal. `measures` holds further aggregates by name, such as perplexity, in the same shape.
    """

    own: list[list[float | None]]
    carried: list[list[float | None]]
    measures: dict[str, list[list[float | None]]]


def score_matrix(
    session: Session, *, model: Model, versions: Sequence[int], task_ids: Sequence[str]
) -> Scores:
    """Returns R over a lineage.

    Where every version was scored on the very same eval set (the usual case) the stored aggregates are
    used; outcomes are read only for tasks whose set grew.
    """
    aggregates = stored_scores(session, model=model, versions=versions, task_ids=task_ids)
    by_task: dict[str, list[StoredScore]] = {task_id: [] for task_id in task_ids}
    for score in aggregates:
        by_task[score.task_id].append(score)
    columns = {task_id: _column_of_one_set(scores, versions) for task_id, scores in by_task.items()}
    grown = [task_id for task_id, column in columns.items() if column is None]
    outcomes = load_outcomes(session, model=model, versions=versions, task_ids=grown) if grown else {}
    own, carried = [], []
    for task_id in task_ids:
        column = columns[task_id]
        answers = [outcomes.get((version, task_id)) for version in versions]
        own.append(column or [None if answer is None else mean_score(answer) for answer in answers])
        carried.append(column or carried_scores(answers))
    return Scores(
        own=_rows(own, len(versions)),
        carried=_rows(carried, len(versions)),
        measures=_measures(aggregates, versions=versions, task_ids=task_ids),
    )


def _measures(
    scores: Sequence[StoredScore], *, versions: Sequence[int], task_ids: Sequence[str]
) -> dict[str, list[list[float | None]]]:
    newest = {(score.version, score.task_id): score.measures for score in scores}  # the oldest come first
    names = sorted({name for measures in newest.values() for name in measures})
    return {
        name: [[newest.get((version, task), {}).get(name) for task in task_ids] for version in versions]
        for name in names
    }


def _rows(columns: Sequence[Sequence[float | None]], count: int) -> list[list[float | None]]:
    return [[column[row] for column in columns] for row in range(count)]


def _column_of_one_set(scores: Sequence[StoredScore], versions: Sequence[int]) -> list[float | None] | None:
    """The task's column where one eval set covers every scored version; None where none does."""
    by_set: dict[str, dict[int, float]] = {}
    for entry in scores:
        by_set.setdefault(entry.eval_set_id, {})[entry.version] = entry.score
    scored = {version for of_set in by_set.values() for version in of_set}
    for of_set in reversed(by_set.values()):  # the newest set first
        if of_set.keys() == scored:
            return [of_set.get(version) for version in versions]
    return None if scored else [None] * len(versions)
