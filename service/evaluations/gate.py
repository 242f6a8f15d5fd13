"""The gate: may this candidate replace the champion? A pure function of paired outcomes and the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from service.evaluations.binomial import t_quantile
from service.evaluations.significance import (
    LEAST_GRADED_SIZE,
    MAX_NEEDED_SIZE,
    Decision,
    delta_interval,
    needed_graded_size,
    noninferiority,
    smallest_deciding_size,
)

Role = Literal["old", "new", "relearnt"]
Rule = Literal["max_regression", "min_new_score", "new_task_regression"]
Promotion = Literal["gate", "manual", "always"]
OnInconclusive = Literal["hold", "promote", "reject"]
Step = Literal["promote", "hold", "reject"]

_FEW_GRADED = 30
"""Below this many graded scores the bounds lean on the differences being about normal (`paired_bootstrap`)."""

_ONLY_A_GAIN_PASSES = (
    "max_regression is 0: only a certain gain passes, and an update that changes nothing never will"
)
_SEVERITY: dict[Decision, int] = {"pass": 0, "inconclusive": 1, "fail": 2}


class ReasonJson(TypedDict):
    task: str
    rule: Rule
    decision: Decision
    observed: float | None
    bound: float
    detail: str


class VerdictJson(TypedDict):
    decision: Decision
    reasons: list[ReasonJson]


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """Says how much an update may lose, how sure the gate must be, and what happens when it is not.

    `max_regression`: largest tolerated fall in accuracy on an old task, between 0 and 1. `confidence`: of
    the one-sided bound that each decision rests on, between 0.5 and 1. `min_new_score`: smallest acceptable
    score on a new task, or None. `on_inconclusive`: what an inconclusive verdict leads to.
    Raises ValueError for values outside these ranges.
    """

    max_regression: float = 0.02
    confidence: float = 0.95
    min_new_score: float | None = None
    on_inconclusive: OnInconclusive = "hold"

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_regression <= 1.0:
            raise ValueError(f"max_regression must lie between 0 and 1, not {self.max_regression}")
        if not 0.5 < self.confidence < 1.0:
            raise ValueError(f"confidence must lie between 0.5 and 1, both excluded, not {self.confidence}")
        if self.min_new_score is not None and not math.isfinite(self.min_new_score):
            raise ValueError(f"min_new_score must be a number or null, not {self.min_new_score}")
        if self.on_inconclusive not in ("hold", "promote", "reject"):
            raise ValueError(f"on_inconclusive is hold, promote or reject, not {self.on_inconclusive!r}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds what candidate and champion did on one task's eval set, on the examples both were scored on.

    `role`: `old` (learnt before this update), `new`, or `relearnt` (old, and trained on again).
    `champion_score` is None where the champion has no score: then nothing can have regressed.
    `graded_interval` replaces the flips for graded scores: one-sided bounds on candidate minus champion,
    from `significance.paired_bootstrap`, infinite for a single example.
    """

    task: str
    role: Role
    size: int
    candidate_score: float | None
    champion_score: float | None
    negative_flips: int
    positive_flips: int
    graded_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Holds what one rule found on one task: the number observed, the bound it had to clear, and words."""

    task: str
    rule: Rule
    observed: float | None
    bound: float
    detail: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class Verdict:
    """Holds the gate's decision with one reason per rule and task, the gravest first."""

    decision: Decision
    reasons: tuple[Reason, ...]


def decide(policy: GatePolicy, comparisons: Sequence[Comparison]) -> Verdict:
    """Judges a candidate against the champion on every task; fail beats inconclusive beats pass.

    Old and relearnt tasks must be shown not to have lost more than `max_regression`
    (`significance.noninferiority`). New and relearnt tasks must reach `min_new_score`, where one is set. A
    new task fails only when the candidate is certainly worse there than the champion (upper bound below 0).
    A candidate without a score where the champion has one fails; a task without eval examples is
    inconclusive. Each passing rule is held at `confidence` on its own: a pass needs all of them, so looking
    at many tasks makes a false pass no likelier.
    """
    reasons: list[Reason] = []
    for comparison in comparisons:
        if comparison.role == "new":
            reasons.append(_new_task_regression(policy, comparison))
        else:
            reasons.append(_max_regression(policy, comparison))
        if comparison.role != "old" and policy.min_new_score is not None:
            reasons.append(_min_new_score(policy.min_new_score, comparison))
    reasons.sort(key=lambda reason: -_SEVERITY[reason.decision])
    decision: Decision = reasons[0].decision if reasons else "pass"
    return Verdict(decision=decision, reasons=tuple(reasons))


def what_happens(
    verdict: Verdict, promotion: Promotion, on_inconclusive: OnInconclusive, *, champion_moved: bool = False
) -> Step:
    """Returns what follows from a verdict: `promote`, `hold` (a person decides) or `reject`.

    `manual` always holds and `always` promotes whatever the verdict; `gate` follows it. A candidate whose parent is
    champion no longer is held in any case: promoting it would undo a move that somebody made meanwhile.
    """
    if promotion == "manual" or champion_moved:
        return "hold"
    if promotion == "always" or verdict.decision == "pass":
        return "promote"
    return "reject" if verdict.decision == "fail" else on_inconclusive


def eval_size_warnings(policy: GatePolicy, sizes: Mapping[str, int]) -> list[str]:
    """Returns a sentence for every task whose eval set is too small to pass the gate, even without a flip.

    `sizes` maps the names of the tasks that must not regress to their numbers of eval examples.
    """
    needed = smallest_deciding_size(policy.max_regression, policy.confidence)
    if needed is None:
        return [_ONLY_A_GAIN_PASSES]
    return [
        f"task {task!r} has {size} eval examples; to show at {_percent(policy.confidence)} confidence that"
        f" at most {_percent(policy.max_regression)} was lost takes {needed} or more, even if no answer changes"
        for task, size in sorted(sizes.items())
        if size < needed
    ]


def graded_size_warnings(policy: GatePolicy, sizes: Mapping[str, int]) -> list[str]:
    """Returns a sentence for every task whose graded eval set cannot pass the gate, or only if its scores change alike.

    `sizes` as in `eval_size_warnings`. What decides is the spread of the changes, which nobody knows before; for few examples
    the sentence says how small it would have to be.
    """
    if policy.max_regression <= 0.0:
        return [_ONLY_A_GAIN_PASSES]
    return [
        f"task {task!r} has {_examples(size, 'eval example')}; {_what_few_can_show(policy, size)}"
        for task, size in sorted(sizes.items())
        if size < _FEW_GRADED
    ]


def to_json(verdict: Verdict) -> VerdictJson:
    """Returns the verdict as plain JSON values, as reports show it."""
    return {
        "decision": verdict.decision,
        "reasons": [
            {
                "task": reason.task,
                "rule": reason.rule,
                "decision": reason.decision,
                "observed": reason.observed,
                "bound": reason.bound,
                "detail": reason.detail,
            }
            for reason in verdict.reasons
        ],
    }


def from_json(document: VerdictJson) -> Verdict:
    """Returns the verdict that `to_json` wrote. Raises KeyError or TypeError for another document."""
    return Verdict(
        decision=document["decision"],
        reasons=tuple(Reason(**reason) for reason in document["reasons"]),
    )


def _max_regression(policy: GatePolicy, comparison: Comparison) -> Reason:
    bound = -policy.max_regression
    unmeasured = _unmeasured(comparison, "max_regression", bound)
    if unmeasured is not None:
        return unmeasured
    if comparison.graded_interval is not None:
        return _graded(policy, comparison, "max_regression", bound)
    tolerated = _percent(policy.max_regression)
    found = noninferiority(
        comparison.negative_flips,
        comparison.positive_flips,
        comparison.size,
        policy.max_regression,
        policy.confidence,
    )
    if found.decision == "pass":
        ending = f"so no more than the tolerated {tolerated} was lost"
    elif found.decision == "fail":
        ending = f"so more than the tolerated {tolerated} was lost"
    else:
        needed = _what_would_decide(found.needed_size, lost=_delta(comparison) < bound)
        ending = f"which does not settle whether more than {tolerated} was lost; {needed}"
    return Reason(
        task=comparison.task,
        rule="max_regression",
        observed=_delta(comparison),
        bound=bound,
        detail=f"{_flips_in_words(comparison, (found.lower, found.upper))}, {ending}",
        decision=found.decision,
    )


def _new_task_regression(policy: GatePolicy, comparison: Comparison) -> Reason:
    unmeasured = _unmeasured(comparison, "new_task_regression", 0.0)
    if unmeasured is not None:
        return unmeasured
    if comparison.graded_interval is not None:
        return _graded(policy, comparison, "new_task_regression", 0.0)
    interval = delta_interval(
        comparison.negative_flips, comparison.positive_flips, comparison.size, policy.confidence
    )
    worse = interval[1] < 0.0
    ending = "certainly worse than the champion" if worse else "not certainly worse than the champion"
    return Reason(
        task=comparison.task,
        rule="new_task_regression",
        observed=_delta(comparison),
        bound=0.0,
        detail=f"{_flips_in_words(comparison, interval)}, {ending} on this new task",
        decision="fail" if worse else "pass",
    )


def _min_new_score(bound: float, comparison: Comparison) -> Reason:
    score = comparison.candidate_score
    reached = score is not None and score >= bound
    detail = (
        "the candidate has no score on this task" if score is None else f"the candidate scores {score:.4g}"
    )
    return Reason(
        task=comparison.task,
        rule="min_new_score",
        observed=score,
        bound=bound,
        detail=f"{detail}; the policy asks for {bound:.4g} or more",
        decision="pass" if reached else "fail",
    )


def _unmeasured(comparison: Comparison, rule: Rule, bound: float) -> Reason | None:
    """The reason where there is no pair of outcomes to compare, or None where there is one."""
    decision: Decision
    if comparison.champion_score is None and (comparison.size or comparison.candidate_score is not None):
        decision, detail = "pass", "the champion has no score on this task, so nothing can have been lost"
    elif comparison.size == 0:
        decision, detail = "inconclusive", "there is no eval example that both versions were scored on"
    elif comparison.candidate_score is None:
        decision, detail = "fail", "the champion has a score on this task and the candidate has none"
    else:
        return None
    return Reason(comparison.task, rule, observed=None, bound=bound, detail=detail, decision=decision)


def _graded(policy: GatePolicy, comparison: Comparison, rule: Rule, bound: float) -> Reason:
    lower, upper = comparison.graded_interval or (-math.inf, math.inf)
    decision: Decision = "inconclusive"
    if lower > bound or (rule == "new_task_regression" and upper >= bound):
        decision = "pass"
    elif upper < bound:
        decision = "fail"
    return Reason(
        task=comparison.task,
        rule=rule,
        observed=_delta(comparison),
        bound=bound,
        detail=_graded_in_words(policy, comparison, bound, decision),
        decision=decision,
    )


def _graded_in_words(policy: GatePolicy, comparison: Comparison, bound: float, decision: Decision) -> str:
    lower, upper = comparison.graded_interval or (-math.inf, math.inf)
    delta = _delta(comparison)
    changed = f"the mean score changed by {delta:+.4g} on {_examples(comparison.size, 'example')}"
    if not math.isfinite(lower):
        return f"{changed}; one example has no spread, so no bounds: it takes {LEAST_GRADED_SIZE} to have any, and mostly more"
    changed += f", between {lower:+.4g} and {upper:+.4g} by the bootstrap or Student's t, whichever is wider"
    if decision != "inconclusive":
        return changed
    needed = needed_graded_size(delta, (lower, upper), comparison.size, bound, policy.confidence)
    would = _what_would_decide(needed, lost=delta < bound, at="at this spread")
    return f"{changed}, which does not settle whether it lies below {bound:+.4g}; {would}"


def _what_few_can_show(policy: GatePolicy, size: int) -> str:
    if size < LEAST_GRADED_SIZE:
        return f"graded scores have bounds from {LEAST_GRADED_SIZE} examples on, so the gate cannot pass it"
    widest = policy.max_regression * math.sqrt(size) / t_quantile(policy.confidence, size - 1)
    return (
        f"with fewer than {_FEW_GRADED} a version that loses nothing passes only if their scores change nearly alike (standard"
        f" deviation below {widest:.2g} at {_percent(policy.confidence)} confidence), and a rare loss is easily missed"
    )


def _examples(size: int, noun: str) -> str:
    return f"{size} {noun}" if size == 1 else f"{size} {noun}s"


def _delta(comparison: Comparison) -> float:
    if comparison.graded_interval is None:
        return (comparison.positive_flips - comparison.negative_flips) / comparison.size
    return (comparison.candidate_score or 0.0) - (comparison.champion_score or 0.0)


def _flips_in_words(comparison: Comparison, interval: tuple[float, float]) -> str:
    negative, positive = comparison.negative_flips, comparison.positive_flips
    return (
        f"of {comparison.size} examples {negative} turned wrong and {positive} turned right:"
        f" {_signed_percent(_delta(comparison))}, between {_signed_percent(interval[0])}"
        f" and {_signed_percent(interval[1])}"
    )


def _what_would_decide(needed_size: int | None, *, lost: bool, at: str = "at these rates") -> str:
    if needed_size is None:
        return f"no eval set of up to {MAX_NEEDED_SIZE} examples would decide {at}"
    verdict = "to reject the candidate" if lost else "in the candidate's favour"
    return f"about {needed_size} eval examples would decide {at}, {verdict}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _signed_percent(share: float) -> str:
    return f"{100 * share:+.2f} %"
