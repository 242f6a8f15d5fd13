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
from service.evaluations.noise import Spread, interpret, p_value_of_mean, rounding_sd, spread
from service.evaluations.outcomes import Ids, Outcomes, flips, mean_score, on_examples, pair
from service.reports.forgetting import (
    PairedOutcome,
    TaskEvidence,
    TaskReport,
    holm_where_tested,
    update_summary,
)

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
    the repeats: seeds that they do not name are of another attempt, and count for nothing. Where no further seed was
    scored there are no figures, and the detail says why.
    """
    others = _named_and_stored(told, answers)
    seeds = [seed, *others]
    diverged, failed = list(told.get("diverged", ())), dict(told.get("failed", {}))
    whole: dict[str, Any] = {"seeds": seeds, "diverged": diverged, "failed": failed, "summary": {}}
    if not others:
        reason = told.get("reason") or "no further seed was scored"
        return UpdateNoise([None] * len(evidence), {**whole, "detail": reason})
    columns = [
        _by_seed(one, answered, others=others) for one, answered in zip(evidence, answers, strict=True)
    ]
    unfit = _why_no_summary(evidence, columns, learnt_at)
    if unfit is None:
        whole["summary"] = _summary(evidence, columns, matrix=matrix, learnt_at=learnt_at, confidence=confidence,
                                    logarithmic=logarithmic)  # fmt: skip
    parts = [
        f"{len(seeds)} seeds of the same update, one of them the version's own",
        f"{len(diverged)} more ran away in training and count in no figure" if diverged else None,
        f"{len(failed)} more failed ({', '.join(sorted(set(failed.values())))}) and count in no figure" if failed else None,
        unfit,
    ]  # fmt: skip
    whole["detail"] = "; ".join(part for part in parts if part)
    return UpdateNoise(_tasks(columns, seeds=seeds, confidence=confidence), whole)


def _named_and_stored(told: Mapping[str, Any], answers: Sequence[TaskAnswers]) -> list[int]:
    """The further seeds of the version's own attempt of which some answer is still there."""
    return sorted(seed for seed in told.get("seeds", ()) if any(seed in one.seeds for one in answers))


@dataclass(frozen=True, slots=True)
class _Seed:
    """What one seed did on one task: its score and change on the shared examples, and what a report on it would take.

    Accuracies move in steps: `step` is that of the score, `change_step` that of the change. Graded scores have none: 0.
    """

    score: float
    change: float | None
    evidence: TaskEvidence
    step: float
    change_step: float = 0.0


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
    graded = outcomes.graded is not None
    step = 0.0 if graded else 1.0 / len(outcomes.example_ids)
    measured = replace(
        evidence,
        score=_plus(evidence.score, score - level),
        lineage_score=_plus(evidence.lineage_score, score - level),
    )
    both = None if parent is None else pair(parent, outcomes)
    if both is None or not len(both):
        return _Seed(score, None, measured, step)
    negative, positive = map(len, flips(both))
    before, after = both.scores()
    return _Seed(
        score=score,
        change=after - before if graded else (positive - negative) / len(both),
        evidence=replace(measured, paired=PairedOutcome(len(both), negative, positive)),
        step=step,
        change_step=0.0 if graded else 1.0 / len(both),
    )


def _tasks(
    columns: Sequence[Sequence[_Seed] | None], *, seeds: Sequence[int], confidence: float
) -> list[dict[str, Any] | None]:
    """The noise of every task; what is tested of them is tested together."""
    changes = [_changes(column, confidence) for column in columns]
    p_values = [
        None if change is None or column is None
        else p_value_of_mean(change, seeds=len(seeds), least_sd=rounding_sd(column[0].change_step))
        for column, change in zip(columns, changes, strict=True)
    ]  # fmt: skip
    tests = sum(p_value is not None for p_value in p_values)
    found: list[dict[str, Any] | None] = []
    rows = zip(columns, changes, p_values, holm_where_tested(p_values), strict=True)
    for column, change, p_value, corrected in rows:
        if column is None:
            found.append(None)
            continue
        noise = _task(column, change, seeds=seeds, p_value_holm=corrected, tests=tests, confidence=confidence)
        found.append({**noise, "p_value": p_value, "p_value_holm": corrected})
    return found


def _changes(column: Sequence[_Seed] | None, confidence: float) -> Spread | None:
    """The spread of the changes on one task; None where the parent has no score to compare with."""
    changes = [one.change for one in column or () if one.change is not None]
    if column is None or len(changes) < len(column):
        return None
    return spread(changes, confidence, least_sd=rounding_sd(column[0].change_step))


def _task(
    column: Sequence[_Seed], change: Spread | None, *, seeds: Sequence[int], p_value_holm: float | None, tests: int,
    confidence: float,
) -> dict[str, Any]:  # fmt: skip
    scores = [one.score for one in column]
    over_seeds = spread(scores, confidence, least_sd=rounding_sd(column[0].step))
    noise: dict[str, Any] = {"seeds": list(seeds), "scores": scores, "score": asdict(over_seeds)}
    own = column[0].change
    if change is None or own is None:
        return {**noise, "changes": None, "change": None, "ratio": None, "standing": None, "detail": _alone(over_seeds, len(seeds))}  # fmt: skip
    found = interpret(own, change, seeds=len(seeds), p_value=p_value_holm, tests=tests, confidence=confidence)
    return {**noise, "changes": [one.change for one in column], "change": asdict(change), **asdict(found)}


def _alone(over_seeds: Spread, seeds: int) -> str:
    return (
        f"the parent has no score to compare with; over {seeds} seeds the score lies between {over_seeds.low:.4g} and"
        f" {over_seeds.high:.4g}, standard deviation {over_seeds.sd:.2g}"
    )


def _why_no_summary(
    evidence: Sequence[TaskEvidence], columns: Sequence[Sequence[_Seed] | None], learnt_at: LearntAt
) -> str | None:
    """Says why a summary over seeds would not be that of the report: a task is in one and not in the other."""
    if all(column is None for column in columns):
        return "no figures, as the seeds share no examples that all of them answered"
    missing = [
        f"'{one.task}'"
        for one, column, row in zip(evidence, columns, learnt_at, strict=True)
        if column is None and row is not None and one.score is not None
    ]
    return f"no summary over seeds, as not every seed was scored on {', '.join(missing)}" if missing else None


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

    Over the tasks that every seed was scored on. What the version was scored on later, for a descendant's sake, takes no part.
    """
    scored = [(at, column) for at, column in enumerate(columns) if column is not None]
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
