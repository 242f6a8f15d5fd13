"""The noise floor as a report shows it: what every seed of an update scored, and the version's change beside that.

Pure: the caller brings the outcomes. Every seed is measured exactly as the version is, on the examples that all of them
answered; earlier versions keep the place that the version's own report gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from service.evaluations.metrics import LearntAt, Matrix, summarise
from service.evaluations.noise import Spread, interpret, spread
from service.evaluations.outcomes import Ids, Outcomes, flips, mean_score, on_examples, pair
from service.reports.forgetting import PairedOutcome, TaskEvidence, TaskReport, update_summary

SEEDLESS = frozenset({"forward_transfer"})
"""Measures of versions before this one: its seed takes no part in them."""


@dataclass(frozen=True, slots=True)
class TaskAnswers:
    """Holds what the version, its parent and the further seeds answered on one task; None or absent where not scored."""

    own: Outcomes | None
    parent: Outcomes | None
    seeds: Mapping[int, Outcomes]


@dataclass(frozen=True, slots=True)
class UpdateNoise:
    """Holds the report's part on noise: that of every task, in the order of the tasks, and that of the whole."""

    tasks: Sequence[Mapping[str, Any] | None]
    whole: Mapping[str, Any]

    def added_to(self, tasks: Sequence[TaskReport]) -> dict[str, Any]:
        """The fields of a report that change with it."""
        noisy = [{**task, "noise": noise} for task, noise in zip(tasks, self.tasks, strict=True)]
        return {"tasks": noisy, "noise": self.whole}


def update_noise(
    *,
    seed: int,
    others: Sequence[int],
    evidence: Sequence[TaskEvidence],
    answers: Sequence[TaskAnswers],
    matrix: Matrix,
    learnt_at: LearntAt,
    confidence: float,
    logarithmic: bool,
    told: Mapping[str, Any],
) -> UpdateNoise:
    """Returns the spread of every score, change and summary measure over an update's seeds.

    `evidence`, `matrix` and `learnt_at` are what the version's own report is made of, `told` what its statistics say of
    the repeats. Where no further seed was scored there are no figures, and the detail says why.
    """
    seeds = [seed, *others]
    diverged = list(told.get("diverged", ()))
    whole: dict[str, Any] = {"seeds": seeds, "diverged": diverged, "summary": {}}
    if not others:
        reason = told.get("reason") or "no further seed was scored"
        return UpdateNoise([None] * len(evidence), {**whole, "detail": reason})
    columns = [
        _by_seed(one, answered, others=others) for one, answered in zip(evidence, answers, strict=True)
    ]
    whole["summary"] = _summary(evidence, columns, matrix=matrix, learnt_at=learnt_at, confidence=confidence,
                                logarithmic=logarithmic)  # fmt: skip
    whole["detail"] = f"{len(seeds)} seeds of the same update, one of them the version's own" + (
        f"; {len(diverged)} more ran away in training and count in no figure" if diverged else ""
    )
    return UpdateNoise([_task(column, seeds=seeds, confidence=confidence) for column in columns], whole)


@dataclass(frozen=True, slots=True)
class _Seed:
    """What one seed did on one task: its score and change on the shared examples, and what a report on it would take."""

    score: float
    change: float | None
    evidence: TaskEvidence


def _by_seed(evidence: TaskEvidence, answers: TaskAnswers, *, others: Sequence[int]) -> list[_Seed] | None:
    """Every seed on one task, the version's own first; None where some were not scored, or on other examples."""
    if answers.own is None or any(seed not in answers.seeds for seed in others):
        return None
    everyone = [answers.own, *(answers.seeds[seed] for seed in others)]
    shared: Ids = reduce(np.intersect1d, (outcomes.example_ids for outcomes in everyone))
    if not len(shared):
        return None
    on_shared = [on_examples(outcomes, shared) for outcomes in everyone]
    level = mean_score(on_shared[0]) or 0.0
    return [_seed(evidence, outcomes, parent=answers.parent, level=level) for outcomes in on_shared]


def _seed(evidence: TaskEvidence, outcomes: Outcomes, *, parent: Outcomes | None, level: float) -> _Seed:
    """One seed beside the parent; `level` is the version's own score on the same examples."""
    score = mean_score(outcomes) or 0.0
    measured = replace(
        evidence,
        score=_plus(evidence.score, score - level),
        lineage_score=_plus(evidence.lineage_score, score - level),
    )
    both = None if parent is None else pair(parent, outcomes)
    if both is None or not len(both):
        return _Seed(score, None, measured)
    negative, positive = map(len, flips(both))
    before, after = both.scores()
    graded = both.b_graded is not None
    return _Seed(
        score=score,
        change=after - before if graded else (positive - negative) / len(both),
        evidence=replace(measured, paired=PairedOutcome(len(both), negative, positive)),
    )


def _task(
    column: Sequence[_Seed] | None, *, seeds: Sequence[int], confidence: float
) -> dict[str, Any] | None:
    if column is None:
        return None
    scores = [one.score for one in column]
    over_seeds = spread(scores, confidence)
    noise: dict[str, Any] = {"seeds": list(seeds), "scores": scores, "score": asdict(over_seeds)}
    changes = [one.change for one in column if one.change is not None]
    if len(changes) < len(column):
        return {**noise, "changes": None, "change": None, "ratio": None, "standing": None, "detail": _alone(over_seeds, len(seeds))}  # fmt: skip
    change = spread(changes, confidence)
    found = interpret(changes[0], change, seeds=len(seeds), confidence=confidence)
    return {**noise, "changes": changes, "change": asdict(change), **asdict(found)}


def _alone(over_seeds: Spread, seeds: int) -> str:
    return (
        f"the parent has no score to compare with; over {seeds} seeds the score lies between {over_seeds.low:.4g} and"
        f" {over_seeds.high:.4g}, standard deviation {over_seeds.sd:.2g}"
    )


def _summary(
    evidence: Sequence[TaskEvidence],
    columns: Sequence[Sequence[_Seed] | None],
    *,
    matrix: Matrix,
    learnt_at: LearntAt,
    confidence: float,
    logarithmic: bool,
) -> dict[str, dict[str, Any] | None]:
    """The spread of the report's summary measures, each computed for every seed as if it were the version.

    Over the tasks that every seed was scored on; none where the lineage has learnt a task that is not among them. What
    the version was scored on later, for a descendant's sake, takes no part.
    """
    missing = any(
        column is None and row is not None and one.score is not None
        for one, column, row in zip(evidence, columns, learnt_at, strict=True)
    )
    scored = [(at, column) for at, column in enumerate(columns) if column is not None]
    if missing or not scored:
        return {}
    earlier = [[row[at] for at, _ in scored] for row in matrix[:-1]]
    learnt = [learnt_at[at] for at, _ in scored]
    summaries = []
    for seed in range(len(scored[0][1])):
        tasks = [column[seed].evidence for _, column in scored]
        lineage = [*earlier, [task.lineage_score for task in tasks]]
        summaries.append(dict(update_summary(tasks, summarise(lineage, learnt, logarithmic=logarithmic))))
    return {
        name: _measure(name, [summary[name] for summary in summaries], confidence) for name in summaries[0]
    }


def _measure(name: str, values: Sequence[Any], confidence: float) -> dict[str, Any] | None:
    if name in SEEDLESS or None in values:
        return None
    return asdict(spread(values, confidence))


def _plus(value: float | None, gained: float) -> float | None:
    return None if value is None else value + gained
