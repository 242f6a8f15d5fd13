"""The two reports as JSON: what one update gained and lost, and the score matrix of a whole lineage.

Pure builders: the caller brings scores, flips and the verdict, these functions derive the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from service.evaluations.gate import Role, Verdict, VerdictJson, to_json
from service.evaluations.metrics import LearntAt, Matrix, Summary, flip_rates, kept_share, summarise
from service.evaluations.significance import delta_interval, holm, mcnemar_exact, shown_bounds


class FlipCounts(TypedDict):
    negative: int
    positive: int


class TaskReport(TypedDict):
    task: str
    role: Role
    eval_size: int
    score: float | None
    parent_score: float | None
    learned_score: float | None
    best_score: float | None
    delta: float | None
    delta_ci: list[float] | None
    p_value: float | None
    p_value_holm: float | None
    forgetting: float | None
    flips: FlipCounts | None
    measures: dict[str, float]
    parent_measures: dict[str, float]


class UpdateSummary(TypedDict):
    average_accuracy: float | None
    learning_accuracy: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    forgetting: float | None
    stability: float | None
    worst_retention: float | None
    plasticity: float | None
    negative_flip_rate: float | None


class UpdateReport(TypedDict):
    model: str
    version: int
    parent: int
    strategy: str
    tasks: list[TaskReport]
    summary: UpdateSummary
    verdict: VerdictJson | None


class LineageSummary(TypedDict):
    average_accuracy: float | None
    learning_accuracy: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    forgetting: float | None
    stability: float | None
    worst_retention: float | None
    intransigence: float | None


class ForgettingReport(TypedDict):
    model: str
    version: int
    tasks: list[str]
    versions: list[int]
    matrix: list[list[float | None]]
    measures: dict[str, list[list[float | None]]]
    summary: LineageSummary


@dataclass(frozen=True, slots=True)
class PairedOutcome:
    """Holds how a version's answers differ from its parent's on the `size` examples both were scored on."""

    size: int
    negative_flips: int
    positive_flips: int


@dataclass(frozen=True, slots=True)
class TaskEvidence:
    """Holds what was measured on one task.

    `score` is the new version's and `parent_score` its parent's, on the examples both answered. `learned_score`
    is that of the version which first learnt the task, `best_score` the best of any earlier version in the lineage
    and `lineage_score` the new version's own, all three in the column that may be subtracted in
    (`outcomes.carried_scores`); None where there is no score. `paired` is None where the parent has no outcomes. For graded scores `graded_interval` gives
    the bounds on score minus parent_score, and flips say nothing about them. `measures` are further aggregates of
    the version by name (perplexity, exact match), `parent_measures` those of its parent.
    """

    task: str
    role: Role
    eval_size: int
    score: float | None
    parent_score: float | None
    learned_score: float | None
    best_score: float | None
    paired: PairedOutcome | None = None
    graded_interval: tuple[float, float] | None = None
    lineage_score: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    parent_measures: Mapping[str, float] = field(default_factory=dict)


def update_report(
    *,
    model: str,
    version: int,
    parent: int,
    strategy: str,
    tasks: Sequence[TaskEvidence],
    lineage: Summary,
    verdict: Verdict | None,
    confidence: float,
) -> UpdateReport:
    """Returns the report of one update: every task against the parent, a summary and the gate's verdict.

    Each end of `delta_ci` is a one-sided bound at `confidence`, the gate's own; exact for accuracies. `p_value` is McNemar's
    exact test and `p_value_holm` the same corrected for the number of tasks tested here. Stability is the
    mean retention of the tasks learnt before the update (old and relearnt), plasticity the mean score of
    those it learnt (new and relearnt); the negative flip rate is over all paired examples of the tasks
    learnt before. `lineage` (`metrics.summarise`) gives the metrics that need the whole matrix.
    """
    p_values = [_p_value(evidence) for evidence in tasks]
    corrected = holm_where_tested(p_values)
    return {
        "model": model,
        "version": version,
        "parent": parent,
        "strategy": strategy,
        "tasks": [
            _task_report(evidence, p_value, p_value_holm, confidence)
            for evidence, p_value, p_value_holm in zip(tasks, p_values, corrected, strict=True)
        ],
        "summary": update_summary(tasks, lineage),
        "verdict": None if verdict is None else to_json(verdict),
    }


def forgetting_report(
    *,
    model: str,
    version: int,
    tasks: Sequence[str],
    versions: Sequence[int],
    matrix: Matrix,
    learnt_at: LearntAt,
    reference: Sequence[float | None] | None = None,
    measures: Mapping[str, Matrix] | None = None,
    logarithmic: bool = False,
) -> ForgettingReport:
    """Returns the score matrix of a lineage, one row per version and one column per task, and its summary.

    `versions` numbers the rows, version 0 first and `version` last; `learnt_at` gives rows, not version
    numbers (see `metrics`). `measures` are further matrices of the same shape by name. Raises ValueError when the parts do not fit together.
    """
    if len(versions) != len(matrix) or not versions or versions[-1] != version:
        raise ValueError(f"versions {list(versions)} do not number {len(matrix)} rows that end in {version}")
    if len(tasks) != len(learnt_at):
        raise ValueError(f"{len(tasks)} task names for {len(learnt_at)} columns")
    found = summarise(matrix, learnt_at, reference, logarithmic=logarithmic)
    return {
        "model": model,
        "version": version,
        "tasks": list(tasks),
        "versions": list(versions),
        "matrix": [list(row) for row in matrix],
        "measures": {name: [list(row) for row in rows] for name, rows in (measures or {}).items()},
        "summary": {
            "average_accuracy": found.average_accuracy,
            "learning_accuracy": found.learning_accuracy,
            "backward_transfer": found.backward_transfer,
            "forward_transfer": found.forward_transfer,
            "forgetting": found.forgetting,
            "stability": found.stability,
            "worst_retention": found.worst_retention,
            "intransigence": found.intransigence,
        },
    }


def _task_report(
    evidence: TaskEvidence, p_value: float | None, p_value_holm: float | None, confidence: float
) -> TaskReport:
    paired = evidence.paired
    return {
        "task": evidence.task,
        "role": evidence.role,
        "eval_size": evidence.eval_size,
        "score": evidence.score,
        "parent_score": evidence.parent_score,
        "learned_score": evidence.learned_score,
        "best_score": None if evidence.role == "new" else evidence.best_score,
        "delta": _delta(evidence),
        "delta_ci": _delta_ci(evidence, confidence),
        "p_value": p_value,
        "p_value_holm": p_value_holm,
        "forgetting": None
        if evidence.role == "new"
        else _minus(evidence.best_score, _lineage_score(evidence)),
        "flips": None
        if paired is None
        else {"negative": paired.negative_flips, "positive": paired.positive_flips},
        "measures": dict(evidence.measures),
        "parent_measures": dict(evidence.parent_measures),
    }


def _lineage_score(evidence: TaskEvidence) -> float | None:
    return evidence.score if evidence.lineage_score is None else evidence.lineage_score


def _delta(evidence: TaskEvidence) -> float | None:
    """The change against the parent, on the paired examples where scores are counts of right answers."""
    if evidence.graded_interval is not None or evidence.paired is None or evidence.paired.size == 0:
        return _minus(evidence.score, evidence.parent_score)
    return (evidence.paired.positive_flips - evidence.paired.negative_flips) / evidence.paired.size


def _delta_ci(evidence: TaskEvidence, confidence: float) -> list[float] | None:
    if evidence.graded_interval is not None:
        return shown_bounds(evidence.graded_interval)
    if evidence.paired is None or evidence.paired.size == 0:
        return None
    paired = evidence.paired
    return list(delta_interval(paired.negative_flips, paired.positive_flips, paired.size, confidence))


def _p_value(evidence: TaskEvidence) -> float | None:
    paired = evidence.paired
    if evidence.graded_interval is not None or paired is None or paired.size == 0:
        return None
    return mcnemar_exact(paired.negative_flips, paired.positive_flips)


def holm_where_tested(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p-values corrected for having been looked at together (`holm`); None, where nothing was tested, stays."""
    corrected = iter(holm([p_value for p_value in p_values if p_value is not None]))
    return [None if p_value is None else next(corrected) for p_value in p_values]


def update_summary(tasks: Sequence[TaskEvidence], lineage: Summary) -> UpdateSummary:
    """Returns a version in numbers, from what was measured on its tasks and the metrics of its lineage."""
    learnt_before = [evidence for evidence in tasks if evidence.role != "new"]
    learnt_now = [evidence for evidence in tasks if evidence.role != "old"]
    shares = (
        kept_share(
            _lineage_score(evidence),
            evidence.learned_score,
            logarithmic=evidence.graded_interval is not None,
        )
        for evidence in learnt_before
    )
    ratios = [share for share in shares if share is not None]
    return {
        "average_accuracy": lineage.average_accuracy,
        "learning_accuracy": lineage.learning_accuracy,
        "backward_transfer": lineage.backward_transfer,
        "forward_transfer": lineage.forward_transfer,
        "forgetting": lineage.forgetting,
        "stability": _mean(ratios),
        "worst_retention": min(ratios, default=None),
        "plasticity": _mean(evidence.score for evidence in learnt_now if evidence.score is not None),
        "negative_flip_rate": _negative_flip_rate(learnt_before),
    }


def _negative_flip_rate(tasks: Iterable[TaskEvidence]) -> float | None:
    paired = [evidence.paired for evidence in tasks if evidence.paired is not None]
    rates = flip_rates(
        sum(outcome.negative_flips for outcome in paired),
        sum(outcome.positive_flips for outcome in paired),
        sum(outcome.size for outcome in paired),
    )
    return None if rates is None else rates.negative


def _mean(values: Iterable[float]) -> float | None:
    present = list(values)
    return sum(present) / len(present) if present else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
