"""The points of a dial, from what each answered. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from service.evaluations.gate import Comparison, GatePolicy, Role, decide
from service.evaluations.metrics import LearntAt, Matrix, best_earlier_score, summarise
from service.evaluations.outcomes import Outcomes, graded_interval, pair
from service.evaluations.significance import Decision, clopper_pearson, paired_bootstrap, shown_bounds
from service.reports.forgetting import FlipCounts, PairedOutcome, TaskEvidence, update_summary

PARENT, CHILD = 0.0, 1.0


@dataclass(frozen=True, slots=True)
class DialColumn:
    """One task of a dial: its column in the lineage's matrix and its part in the version's update.

    `guards`: the gate holds the version to it as to an old one, for it was learnt or guarded before the update. A task
    that was scored all the same, because others learnt it, is shown and decides nothing.
    """

    task_id: str
    name: str
    role: Role
    column: int
    guards: bool


@dataclass(frozen=True, slots=True)
class Scored:
    """What one point scored on one task: `correct` a bit per example, `change` (graded scores) against the parent."""

    size: int
    score: float
    correct: bytes
    interval: tuple[float, float]
    change: tuple[float, float] | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


Points = Mapping[float, Mapping[str, Scored]]
"""By β, then by task id."""


class TaskDocument(TypedDict):
    task: str
    role: Role
    eval_size: int
    score: float | None
    interval: list[float] | None
    delta: float | None
    flips: FlipCounts | None
    measures: dict[str, float]


class PointDocument(TypedDict):
    beta: float
    source: str
    tasks: list[TaskDocument]
    average_accuracy: float | None
    backward_transfer: float | None
    forgetting: float | None
    stability: float | None
    worst_retention: float | None
    plasticity: float | None
    negative_flip_rate: float | None
    old_tasks: Decision | None


def score_interval(outcomes: Outcomes, *, confidence: float) -> tuple[float, float]:
    """Returns bounds on the mean score, each with the given confidence: exact for counts, else `paired_bootstrap`."""
    if outcomes.graded is not None:
        return paired_bootstrap(outcomes.graded, confidence, seed=0)
    return clopper_pearson(int(outcomes.correct.sum()), len(outcomes), confidence)


def change_interval(
    before: Outcomes | None, after: Outcomes, *, confidence: float
) -> tuple[float, float] | None:
    """Returns `paired_bootstrap` bounds on the change of a mean graded score; None where scores are counts."""
    return None if before is None else graded_interval(pair(before, after), confidence=confidence)


def point_document(
    beta: float,
    points: Points,
    *,
    columns: Sequence[DialColumn],
    matrix: Matrix,
    learnt_at: LearntAt,
    policy: GatePolicy,
    logarithmic: bool,
) -> PointDocument:
    """Returns one point as the API shows it.

    `matrix` is the version's lineage, carried to the version's examples (`outcomes.carried_scores`); the point takes the
    place of its last row, so that every measure is the report's: at β = 1 they are equal.
    """
    here, parent = points[beta], points[PARENT]
    rows = [*matrix[:-1], _row(points, beta, columns=columns, last=matrix[-1])]
    evidence = [_evidence(column, here, parent, matrix=rows, learnt_at=learnt_at) for column in columns]
    summary = update_summary(evidence, summarise(rows, learnt_at, logarithmic=logarithmic))
    return {
        "beta": beta,
        "source": "recorded" if beta in (PARENT, CHILD) else "computed",
        "tasks": [_task_document(column, here, parent) for column in columns],
        "average_accuracy": summary["average_accuracy"],
        "backward_transfer": summary["backward_transfer"],
        "forgetting": summary["forgetting"],
        "stability": summary["stability"],
        "worst_retention": summary["worst_retention"],
        "plasticity": summary["plasticity"],
        "negative_flip_rate": summary["negative_flip_rate"],
        "old_tasks": decision_on_old_tasks(columns, here, parent, policy=policy),
    }


def recommended_beta(documents: Sequence[PointDocument]) -> float | None:
    """Returns the last of the points, from the smallest β above 0 on, before the first that does not pass; None for none.

    A fixed-sequence test (Maurer, Hothorn & Lehmacher 1995): each point is tested at the full level, and only once all
    before it have passed, which keeps the chance that any false pass is among them at the level of one test. Picking the
    largest β that passes by itself would not.
    """
    found = None
    for document in documents:
        if document["beta"] == PARENT:
            continue
        if document["old_tasks"] != "pass":
            break
        found = document["beta"]
    return found


def decision_on_old_tasks(
    columns: Sequence[DialColumn],
    here: Mapping[str, Scored],
    parent: Mapping[str, Scored],
    *,
    policy: GatePolicy,
) -> Decision | None:
    """Returns the gate's decision on the tasks it held the update to, against the parent; None without any."""
    old = [
        _comparison(column, here.get(column.task_id), parent.get(column.task_id))
        for column in columns
        if column.guards
    ]
    return decide(policy, old).decision if old else None


def _comparison(column: DialColumn, here: Scored | None, parent: Scored | None) -> Comparison:
    negative, positive = _flips(here, parent)
    return Comparison(
        task=column.name,
        role="old",  # a relearnt one must not have lost either; what else it must reach is for the gate to judge
        size=here.size if here else 0,
        candidate_score=here.score if here else None,
        champion_score=parent.score if parent else None,
        negative_flips=negative,
        positive_flips=positive,
        graded_interval=here.change if here else None,
    )


def _row(
    points: Points, beta: float, *, columns: Sequence[DialColumn], last: Sequence[float | None]
) -> list[float | None]:
    """The point's row of the matrix: what it scored, carried to where the version's own score stands."""
    row: list[float | None] = [None] * len(last)
    for column in columns:
        here, child = points[beta].get(column.task_id), points[CHILD].get(column.task_id)
        level = last[column.column]
        if here is None:
            continue
        row[column.column] = here.score
        if level is not None and child is not None and child.score != level:
            row[column.column] = here.score + level - child.score
    return row


def _evidence(
    column: DialColumn,
    here: Mapping[str, Scored],
    parent: Mapping[str, Scored],
    *,
    matrix: Matrix,
    learnt_at: LearntAt,
) -> TaskEvidence:
    now, before, learnt = here.get(column.task_id), parent.get(column.task_id), learnt_at[column.column]
    negative, positive = _flips(now, before)
    return TaskEvidence(
        task=column.name,
        role=column.role,
        eval_size=now.size if now else 0,
        score=now.score if now else None,
        parent_score=before.score if before else None,
        learned_score=None if learnt is None else matrix[learnt][column.column],
        best_score=best_earlier_score(matrix, column.column),
        paired=PairedOutcome(now.size, negative, positive) if now and before else None,
        graded_interval=now.change if now else None,
        lineage_score=matrix[-1][column.column],
    )


def _task_document(
    column: DialColumn, here: Mapping[str, Scored], parent: Mapping[str, Scored]
) -> TaskDocument:
    now, before = here.get(column.task_id), parent.get(column.task_id)
    negative, positive = _flips(now, before)
    return {
        "task": column.name,
        "role": column.role,
        "eval_size": now.size if now else 0,
        "score": now.score if now else None,
        "interval": shown_bounds(now.interval) if now else None,
        "delta": now.score - before.score if now and before else None,
        "flips": {"negative": negative, "positive": positive} if now and before else None,
        "measures": dict(now.measures) if now else {},
    }


def _flips(here: Scored | None, parent: Scored | None) -> tuple[int, int]:
    """How many examples of one eval set turned wrong and right against the parent."""
    if here is None or parent is None:
        return 0, 0
    now, before = (
        np.unpackbits(np.frombuffer(one.correct, dtype=np.uint8), count=one.size).astype(bool)
        for one in (here, parent)
    )
    return int((before & ~now).sum()), int((~before & now).sum())
