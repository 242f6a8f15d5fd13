"""From what a probe measured to what an update will cost an old task, held against the model's own past. Pure functions.

What an update did to a task is regressed on what its probe showed, by a ridge whose prior is the plain probe: with no past
at all, the forecast is that the whole update changes what its first steps changed. Every past update weighs the same,
however many tasks it had.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.evaluations.gate import GatePolicy
from service.evaluations.significance import LEAST_GRADED_SIZE, Decision, noninferiority

Role = Literal["old", "relearnt"]
Outlook = Literal["likely_pass", "at_risk", "likely_fail", "undecidable"]
Vector = NDArray[np.float64]

PRIOR = np.array([0.5, 0.5, 0.0, 0.0, 0.0, 0.0])
"""Weights without any past: the mean of the two changes that the probe showed. The last is the intercept's."""
PENALTY = 0.3
"""How many past updates the prior is worth, about. Set on streams of seeds that no reported figure comes from."""
SMALLEST_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class Signs:
    """What was measured of one old task before an update was trained.

    `score_change` and `likelihood_change` are probe minus parent on the same eval rows: the mean score, and the mean
    probability of the right label (of a language model both are the mean log-likelihood). `new_loss` is the parent's mean
    loss on the new rows in nats, `label_overlap` the share of new rows whose label the task has (0 without labels).
    """

    score_change: float
    likelihood_change: float
    parent_score: float
    new_loss: float
    label_overlap: float

    def vector(self) -> Vector:
        """The six regressors [6], the intercept last."""
        return np.array(
            [self.score_change, self.likelihood_change, self.parent_score, self.new_loss, self.label_overlap, 1.0]
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Past:
    """One old task of a past update: what its probe had shown, and what the whole update then changed."""

    update: str
    signs: Signs
    change: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A forecast change of a mean score; `interval` is None where `updates` past ones do not suffice, which takes `needed`."""

    change: float
    interval: tuple[float, float] | None
    updates: int
    needed: int


def updates_needed(level: float) -> int:
    """Returns how many past updates an interval of this level takes: fewer leave it endless."""
    return math.ceil(level / (1.0 - level) - 1e-9)


def estimate(signs: Signs, past: Sequence[Past], *, level: float, graded: bool = False) -> Estimate:
    """Returns the forecast change of a task's score, with an interval where the past suffices for one.

    The interval is the hierarchical jackknife+ of Lee, Barber and Willett (arXiv 2306.06342), which is the jackknife+
    (Barber et al., arXiv 1905.02928) with whole groups left out, here updates, whose tasks are no independent draws:
    from μ₋ₖ(x) − Rₖᵢ and μ₋ₖ(x) + Rₖᵢ, with μ₋ₖ fitted without update k and Rₖᵢ = |yₖᵢ − μ₋ₖ(xₖᵢ)|, each of weight
    1 / ((K + 1)·nₖ), the (1 − level)- and level-quantiles, with 1 / (K + 1) at infinity. If the next update is like the
    past ones (exchangeable), the task's change lies inside with about `level`, and for any distribution with 2·level − 1
    at least.
    Accuracies stay within [0, 1], mean log-likelihoods (`graded`) below 0.
    """
    groups: dict[str, list[Past]] = defaultdict(list)
    for one in past:
        groups[one.update].append(one)
    lowest = -math.inf if graded else -signs.parent_score
    highest = (0.0 if graded else 1.0) - signs.parent_score
    change = float(np.clip(_weights(past) @ signs.vector(), lowest, highest))
    interval = _interval(signs, groups, level=level)
    if interval is not None:
        low, high = (float(np.clip(end, lowest, highest)) for end in interval)
        interval = (min(low, change), max(high, change))
    return Estimate(change, interval, updates=len(groups), needed=updates_needed(level))


def _weights(past: Sequence[Past]) -> Vector:
    """The ridge's weights [6]: Σ over updates of the mean squared error of its tasks, plus PENALTY·scale²·(w − PRIOR)²."""
    if not past:
        return PRIOR
    counts: Mapping[str, int] = _counts(past)
    rows = np.array([one.signs.vector() for one in past])
    changes = np.array([one.change for one in past])
    shares = np.array([1.0 / counts[one.update] for one in past])
    weighted = rows.T * shares
    moment = weighted @ rows
    scales = np.diag(moment) / shares.sum() + SMALLEST_SCALE
    return PRIOR + np.linalg.solve(moment + PENALTY * np.diag(scales), weighted @ (changes - rows @ PRIOR))


def _counts(past: Sequence[Past]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for one in past:
        counts[one.update] += 1
    return counts


def _interval(
    signs: Signs, groups: Mapping[str, Sequence[Past]], *, level: float
) -> tuple[float, float] | None:
    if len(groups) < updates_needed(level):
        return None
    lows, highs, masses = [], [], []
    for left_out, ones in groups.items():
        rest = [one for update, others in groups.items() if update != left_out for one in others]
        weights = _weights(rest)
        here = float(weights @ signs.vector())
        for one in ones:
            residual = abs(one.change - float(weights @ one.signs.vector()))
            lows.append(-(here - residual))
            highs.append(here + residual)
            masses.append(1.0 / ((len(groups) + 1) * len(ones)))
    return -_quantile(lows, masses, level), _quantile(highs, masses, level)


def _quantile(values: Sequence[float], masses: Sequence[float], level: float) -> float:
    """The smallest of the values at which the mass of those up to it reaches `level`; the mass missing to 1 lies at infinity."""
    order = np.argsort(values)
    reached = np.cumsum(np.asarray(masses)[order])
    at = int(np.searchsorted(reached, level - 1e-9))
    return float(np.asarray(values)[order][at]) if at < len(order) else math.inf


def outlook(policy: GatePolicy, estimate: Estimate, *, size: int, graded: bool) -> Outlook:
    """Returns what the gate's rule on old tasks would say at both ends of the interval, or at the change itself without one.

    `likely_pass` where it passes even the low end, `likely_fail` where it fails even the high end, else `at_risk`; of
    `size` eval examples as few as can be flip. `undecidable`: no change at all would not pass either, the set is too small.
    Of graded scores, whose spread is not known before, the ends are compared with the margin alone; one example is too few.
    """
    low, high = estimate.interval or (estimate.change, estimate.change)
    if graded and size < LEAST_GRADED_SIZE:
        return "undecidable"
    if graded:
        margin = -policy.max_regression
        return "likely_pass" if low > margin else "likely_fail" if high < margin else "at_risk"
    if _judged(policy, high, size) == "fail":
        return "likely_fail"
    if _judged(policy, 0.0, size) != "pass":
        return "undecidable"
    return "likely_pass" if _judged(policy, low, size) == "pass" else "at_risk"


def _judged(policy: GatePolicy, change: float, size: int) -> Decision:
    flips = min(size, round(abs(change) * size))
    negative, positive = (flips, 0) if change < 0 else (0, flips)
    return noninferiority(negative, positive, size, policy.max_regression, policy.confidence).decision
