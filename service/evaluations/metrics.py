"""Continual-learning metrics, all derived from one matrix of scores.

`matrix[k][i]` is the score of the k-th version of a lineage on task i. Rows follow the lineage in order and
row 0 is version 0, the untouched base; the last row is the version being judged (n below). A cell is None
where that version has no score on that task: a version without a head, or a pair that was never scored.
Within a column cells must be comparable (`outcomes.carried_scores`).

`learnt_at[i]` is the row of the version that learnt task i *first*, or None for a task the lineage has not
learnt. Learning a task again does not move it. A guarded task that no version learnt counts from the first row
that was scored on it: row 0 for a language model, whose base has scores.

A None is never counted as 0. A task that lacks a score which a metric needs is left out of that metric, and
a metric for which no task is left is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Matrix = Sequence[Sequence[float | None]]
LearntAt = Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Retention:
    """Holds the share of its first score that an old task kept: the mean over tasks, and the worst task."""

    mean: float
    worst: float


@dataclass(frozen=True, slots=True)
class FlipRates:
    """Holds the shares of examples that turned wrong and that turned right between two versions."""

    negative: float
    positive: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Holds every metric of a lineage's last version; None where nothing could be measured.

    `stability` and `worst_retention` are the mean and the worst retention over tasks learnt before.
    """

    average_accuracy: float | None
    learning_accuracy: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    forgetting: float | None
    stability: float | None
    worst_retention: float | None
    intransigence: float | None


def summarise(
    matrix: Matrix,
    learnt_at: LearntAt,
    reference: Sequence[float | None] | None = None,
    *,
    logarithmic: bool = False,
) -> Summary:
    """Returns every metric of the matrix; `reference` (scores of a `joint` model) is for intransigence.

    `logarithmic` says that scores are mean log-likelihoods: retention is then a ratio of probabilities.

    Raises ValueError when the matrix is ragged, or when `learnt_at` or `reference` does not suit it.
    """
    retained = retention(matrix, learnt_at, logarithmic=logarithmic)
    return Summary(
        average_accuracy=average_accuracy(matrix, learnt_at),
        learning_accuracy=learning_accuracy(matrix, learnt_at),
        backward_transfer=backward_transfer(matrix, learnt_at),
        forward_transfer=forward_transfer(matrix, learnt_at),
        forgetting=forgetting(matrix, learnt_at),
        stability=None if retained is None else retained.mean,
        worst_retention=None if retained is None else retained.worst,
        intransigence=None if reference is None else intransigence(matrix, learnt_at, reference),
    )


def average_accuracy(matrix: Matrix, learnt_at: LearntAt) -> float | None:
    """Returns ACC = mean_i R(n, i) over the tasks learnt so far.

    Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory", arXiv 1706.08840, equation 2.
    """
    return _mean(matrix[-1][task] for task, _ in _learnt(matrix, learnt_at))


def learning_accuracy(matrix: Matrix, learnt_at: LearntAt) -> float | None:
    """Returns LA = mean_i R(i, i), the score on each task right after it was first learnt (plasticity).

    What the base could do before anything was learnt (row 0) is no learning and does not count.

    Riemer et al. 2019, "Learning to Learn without Forgetting", arXiv 1810.11910, metric LA:
    the average accuracy on each task directly after it is learned.
    """
    return _mean(matrix[row][task] for task, row in _learnt(matrix, learnt_at) if row > 0)


def backward_transfer(matrix: Matrix, learnt_at: LearntAt) -> float | None:
    """Returns BWT = mean_{i<n} [R(n, i) − R(i, i)]; negative when old tasks were lost.

    The mean is over tasks learnt before the last version. arXiv 1706.08840, equation 3.
    """
    last = matrix[-1]
    return _mean(_minus(last[task], matrix[row][task]) for task, row in _old(matrix, learnt_at))


def forward_transfer(matrix: Matrix, learnt_at: LearntAt) -> float | None:
    """Returns FWT = mean_{i≥2} [R(i−1, i) − b_i]: what earlier learning gave a task before its own turn.

    b_i is the score of version 0, and R(i−1, i) that of the version just before task i was first learnt;
    tasks learnt by version 1 have no such version and are left out. Version 0 of a classifier has no head
    and no score, and then forward transfer is None. arXiv 1706.08840, equation 4.
    """
    later = ((task, row) for task, row in _learnt(matrix, learnt_at) if row >= 2)
    return _mean(_minus(matrix[row - 1][task], matrix[0][task]) for task, row in later)


def forgetting(matrix: Matrix, learnt_at: LearntAt) -> float | None:
    """Returns F = mean_{j<n} [max_{l<n} R(l, j) − R(n, j)] over tasks learnt before the last version.

    The maximum is over the *earlier* rows only, so a task that is better than ever counts negatively.
    Chaudhry et al. 2018, "Riemannian Walk", arXiv 1801.10112, section 4, definition of f_j^k. Version 0
    counts among the earlier rows where it has a score (in the paper l starts at 1): a language model can
    forget what its base could do.
    """
    return _mean(
        _minus(best_earlier_score(matrix, task), matrix[-1][task]) for task, _ in _old(matrix, learnt_at)
    )


def best_earlier_score(matrix: Matrix, task: int) -> float | None:
    """Returns max_{l<n} R(l, task), the best score of any earlier version, or None without one."""
    return max(_present(row[task] for row in matrix[:-1]), default=None)


def retention(matrix: Matrix, learnt_at: LearntAt, *, logarithmic: bool = False) -> Retention | None:
    """Returns the mean and the smallest R(n, i) / R(i, i) over tasks learnt before the last version.

    1 means nothing lost; above 1 the task has gained since. A task first learnt at an accuracy of 0 has no such
    ratio and is left out. Mean log-likelihoods (`logarithmic`) give exp(R(n, i) − R(i, i)), the ratio of the
    probabilities per token, which is perplexity then / perplexity now.
    """
    ratios = list(
        _present(
            kept_share(matrix[-1][task], matrix[row][task], logarithmic=logarithmic)
            for task, row in _old(matrix, learnt_at)
        )
    )
    return Retention(mean=sum(ratios) / len(ratios), worst=min(ratios)) if ratios else None


def intransigence(matrix: Matrix, learnt_at: LearntAt, reference: Sequence[float | None]) -> float | None:
    """Returns I = mean_k [R*(k) − R(k, k)]: how much worse than a reference each task was first learnt.

    `reference[i]` is the score on task i of a model trained jointly on all tasks up to it, or None. Negative
    when learning in turn did better. arXiv 1801.10112, section 4, definition of I_k. Raises ValueError
    unless there is one reference entry per task.
    """
    if len(reference) != len(learnt_at):
        raise ValueError(f"{len(reference)} reference scores for {len(learnt_at)} tasks")
    return _mean(_minus(reference[task], matrix[row][task]) for task, row in _learnt(matrix, learnt_at))


def flip_rates(negative: int, positive: int, size: int) -> FlipRates | None:
    """Returns the shares of `size` paired examples that turned wrong and right, or None without examples.

    NFR = #(before right ∧ after wrong) / N: Yan et al. 2021, "Positive-Congruent Training", arXiv
    2011.09161, the definition of NFR. Raises ValueError when the counts do not fit the size.
    """
    if negative < 0 or positive < 0 or negative + positive > size:
        raise ValueError(f"{negative} negative and {positive} positive flips do not fit {size} examples")
    return FlipRates(negative=negative / size, positive=positive / size) if size else None


def _learnt(matrix: Matrix, learnt_at: LearntAt) -> Iterator[tuple[int, int]]:
    """Pairs of a learnt task and the row that first learnt it."""
    _check(matrix, learnt_at)
    return ((task, row) for task, row in enumerate(learnt_at) if row is not None)


def _old(matrix: Matrix, learnt_at: LearntAt) -> Iterator[tuple[int, int]]:
    return ((task, row) for task, row in _learnt(matrix, learnt_at) if row < len(matrix) - 1)


def _check(matrix: Matrix, learnt_at: LearntAt) -> None:
    if not matrix:
        raise ValueError("the matrix has no rows; version 0 is always the first")
    for number, row in enumerate(matrix):
        if len(row) != len(learnt_at):
            raise ValueError(f"row {number} has {len(row)} scores for {len(learnt_at)} tasks")
    for task, learnt in enumerate(learnt_at):
        if learnt is not None and not 0 <= learnt < len(matrix):
            raise ValueError(f"task {task} cannot have been learnt at row {learnt} of {len(matrix)}")


def _mean(values: Iterable[float | None]) -> float | None:
    present = list(_present(values))
    return sum(present) / len(present) if present else None


def _present(values: Iterable[float | None]) -> Iterator[float]:
    return (value for value in values if value is not None)


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def kept_share(score: float | None, first: float | None, *, logarithmic: bool) -> float | None:
    """Returns which share of its first score a task has kept, or None where that has no meaning."""
    if score is None or first is None:
        return None
    if logarithmic:
        return math.exp(score - first)
    return None if first <= 0.0 else score / first
