"""What paired outcomes can and cannot show: exact bounds, non-inferiority, McNemar, Holm, the bootstrap.

One convention throughout, `confidence` = c: **each end of an interval is a one-sided bound that holds with
confidence c**, as in DESIGN's α/2 = 1 − c. A verdict uses one end only (passing the lower, failing the
upper), so c is the confidence of the verdict, and the interval that a report prints is the very one that the
gate decided on. With no flips the lower end is then −(1 − (1 − c)^(1/N)), which at c = 0.95 clears a margin
of 2 % from N = 149 on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.evaluations.binomial import beta_quantile, incomplete_beta, t_quantile

Decision = Literal["pass", "fail", "inconclusive"]

MAX_NEEDED_SIZE = 1_000_000
"""Sample sizes beyond this are answered with None: nobody collects that many eval examples to decide."""

LEAST_GRADED_SIZE = 2
"""Fewest graded differences that have bounds: a single one has no spread."""

_BOOTSTRAP_CHUNK = 4_000_000
# A resample that drew one value only has no spread but rounding's, and cannot be studentised.
_NO_SPREAD = 1e-12
# A page of a dial asks for hundreds of answers, and for the same ones whenever it is looked at.
_REMEMBERED = 4_096


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """Holds the bounds on the change in accuracy, one-sided each, and the decision."""

    lower: float
    upper: float
    decision: Decision
    _found: tuple[int, int, int, float, float]  # what it was decided from

    @property
    def needed_size(self) -> int | None:
        """The sample size that would decide; None when none up to `MAX_NEEDED_SIZE` would.

        Searched for when asked: that takes many times as long as the decision.
        """
        return _needed_size(*self._found)


def clopper_pearson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Returns exact bounds on a proportion; each one-sided bound holds with the given confidence.

    Clopper & Pearson (1934): the lower bound p solves P(X ≥ successes | n, p) = 1 − confidence, the upper
    one P(X ≤ successes | n, p) = 1 − confidence. Together they are the usual two-sided interval at
    2·confidence − 1, so pass 0.975 for the textbook 95 % interval. Good for n up to 1e6 and more.
    Raises ValueError for counts outside 0 to n or a confidence outside (0.5, 1).
    """
    _check_confidence(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a proportion")
    return _proportion_bounds(successes, n, 1.0 - confidence)


def delta_interval(negative: int, positive: int, size: int, confidence: float) -> tuple[float, float]:
    """Returns (L, U), one-sided exact bounds on the change in accuracy from its flips.

    L = CP_low(positive) − CP_up(negative) and U = CP_up(positive) − CP_low(negative), each Clopper–Pearson
    bound at `confidence`. With no examples the interval is (−1, 1). Raises ValueError for impossible counts.
    """
    _check_confidence(confidence)
    if negative < 0 or positive < 0 or negative + positive > size:
        raise ValueError(f"{negative} negative and {positive} positive flips do not fit {size} examples")
    return _delta_bounds(negative, positive, size, 1.0 - confidence)


@lru_cache(maxsize=_REMEMBERED)
def noninferiority(
    negative_flips: int, positive_flips: int, size: int, margin: float, confidence: float
) -> NonInferiority:
    """Decides whether accuracy fell by less than `margin`, exactly and from the discordant pairs alone.

    `pass` when L > −margin, `fail` when U < −margin, otherwise `inconclusive` (L, U: `delta_interval`).
    A true regression of `margin` or more passes with probability at most 1 − confidence, and a true
    regression of `margin` or less fails with at most that. The union bound over the two rates promises
    2·(1 − confidence); the exact worst case over all flip rates, computed in the tests, is reached where
    nothing flips to the good, and there only one of the two bounds can err.
    Raises ValueError for impossible counts, or a margin outside [0, 1].
    """
    if not 0.0 <= margin <= 1.0:
        raise ValueError(f"a margin lies between 0 and 1, not {margin}")
    lower, upper = delta_interval(negative_flips, positive_flips, size, confidence)
    return NonInferiority(
        lower=lower,
        upper=upper,
        decision=_decide(lower, upper, margin),
        _found=(negative_flips, positive_flips, size, margin, confidence),
    )


def smallest_deciding_size(margin: float, confidence: float) -> int | None:
    """Returns the fewest examples with which a version without any flips can pass, or None for margin 0.

    The smallest N with 1 − (1 − confidence)^(1/N) < margin: 149 for 2 % at 0.95.
    """
    _check_confidence(confidence)
    if margin <= 0.0:
        return None
    if margin >= 1.0:
        return 1
    return math.floor(math.log1p(-confidence) / math.log1p(-margin)) + 1


def mcnemar_exact(n01: int, n10: int) -> float:
    """Returns the exact two-sided p-value of McNemar's test: are flips equally likely in both directions?

    McNemar (1947), binomial form: 2·P(X ≤ min(n01, n10)) for X ~ Bin(n01 + n10, 1/2), at most 1; 1 when
    nothing flipped. A large p-value is no evidence that nothing was lost. Raises ValueError for negatives.
    """
    if n01 < 0 or n10 < 0:
        raise ValueError("flip counts must not be negative")
    if n01 == n10:
        return 1.0
    fewer, more = sorted((n01, n10))
    return min(1.0, 2.0 * incomplete_beta(more, fewer + 1, 0.5))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for having been looked at together, in the order given.

    Holm (1979): the i-th smallest of m is multiplied by m − i + 1, made monotone and capped at 1. Calling
    significant what stays under α errs anywhere in the list with probability at most α.
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def paired_bootstrap(
    differences: ArrayLike, confidence: float, seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """Returns bounds on the mean of paired differences, the wider of the bootstrap's and Student's; each at `confidence`.

    For graded scores (candidate minus champion, one per example). Student's t is exact for normal differences from two on,
    where a bootstrap is far too narrow; the studentised bootstrap follows skewed ones (Efron & Tibshirani 1993, section
    12.5; Hall 1988, Annals of Statistics 16, 927-953). A single difference is bounded by nothing: (−∞, ∞); differences
    that are all one by their mean. The same seed gives the same bounds.

    No bounds hold for every distribution (Bahadur & Savage 1956). Of versions that lost exactly the margin at 0.95, at most
    5 % pass where differences are normal, whatever their number; where losses are exponential about 15 % with 2 examples,
    8 % with 5 or 10 and 5 % with 30; where one example in ten loses it all 42 %, 55 %, 35 % and 4 %: what no eval example
    shows is missed.
    Raises ValueError where there is no difference or one is not finite.
    """
    _check_confidence(confidence)
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError("the bootstrap needs a list of at least one finite difference")
    if values.size < LEAST_GRADED_SIZE:
        return -math.inf, math.inf
    mean = float(values.mean())
    if np.ptp(values) == 0.0:
        return mean, mean
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    ratios = _studentised_means((values - mean) / error, np.random.default_rng(seed), resamples)
    student = t_quantile(confidence, values.size - 1)
    low, high = np.quantile(ratios, [1.0 - confidence, confidence])
    return mean - error * max(student, float(high)), mean + error * max(student, -float(low))


def needed_graded_size(
    delta: float, interval: tuple[float, float], size: int, bound: float, confidence: float
) -> int | None:
    """Returns about how many examples would decide on which side of `bound` a mean change lies; None for none.

    `delta` and `interval` were found on `size` examples. Taken as Student's, the half width h towards the bound tells the
    standard deviation, s = h·√N / t(c; N − 1); where `delta` and s stay, the smallest n with t(c; n − 1)·s/√n < |delta − bound|
    decides. None beyond `MAX_NEEDED_SIZE`, and where `interval` has no ends.
    """
    half = delta - interval[0] if delta > bound else interval[1] - delta
    if size < LEAST_GRADED_SIZE or not math.isfinite(half):
        return None
    deviation = half * math.sqrt(size) / t_quantile(confidence, size - 1)
    distance = abs(delta - bound)

    def decides(candidate: int) -> bool:
        if candidate < LEAST_GRADED_SIZE:
            return False
        return t_quantile(confidence, candidate - 1) * deviation < distance * math.sqrt(candidate)

    return _first_true(decides, start=size, limit=MAX_NEEDED_SIZE)


def shown_bounds(interval: tuple[float, float]) -> list[float] | None:
    """Returns bounds as documents show them, where JSON has no infinity: None for those without ends."""
    return list(interval) if all(map(math.isfinite, interval)) else None


def _studentised_means(
    values: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """The t-ratio of every resample that has a spread; `values` have mean 0 and a standard deviation of √N."""
    size = values.size
    rows = max(1, _BOOTSTRAP_CHUNK // size)  # bounds memory, whatever the eval set's size
    chunks = []
    for start in range(0, resamples, rows):
        drawn = values[generator.integers(0, size, size=(min(rows, resamples - start), size))]
        means = drawn.mean(axis=1)
        # The values are centred, so that the difference of squares loses no digits.
        spreads = np.einsum("ij,ij->i", drawn, drawn) / size - means**2
        told = spreads > _NO_SPREAD * size
        chunks.append(means[told] / np.sqrt(spreads[told] / (size - 1)))
    return np.concatenate(chunks)


def _decide(lower: float, upper: float, margin: float) -> Decision:
    if lower > -margin:
        return "pass"
    return "fail" if upper < -margin else "inconclusive"


@lru_cache(maxsize=_REMEMBERED)
def _needed_size(negative: int, positive: int, size: int, margin: float, confidence: float) -> int | None:
    """The smallest size that decides if both flip rates stay as observed (counts need not be whole)."""
    if size == 0:
        return smallest_deciding_size(margin, confidence)
    delta = (positive - negative) / size
    if math.isclose(delta, -margin, rel_tol=1e-9, abs_tol=1e-12):
        return None

    tail = 1.0 - confidence

    def passes(candidate: int) -> bool:
        scale = candidate / size
        gained = _lower_bound(positive * scale, candidate, tail)
        return gained - _upper_bound(negative * scale, candidate, tail) > -margin

    def fails(candidate: int) -> bool:
        scale = candidate / size
        lost = _lower_bound(negative * scale, candidate, tail)
        return _upper_bound(positive * scale, candidate, tail) - lost < -margin

    decides = passes if delta > -margin else fails
    return _first_true(decides, start=size, limit=MAX_NEEDED_SIZE)


def _first_true(decides: Callable[[int], bool], start: int, limit: int) -> int | None:
    """The smallest size from 1 to `limit` that decides, given that every larger size decides as well."""
    low, high = 0, start
    while not decides(high):
        if high >= limit:
            return None
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _delta_bounds(negative: int, positive: int, size: int, tail: float) -> tuple[float, float]:
    negative_low, negative_high = _proportion_bounds(negative, size, tail)
    positive_low, positive_high = _proportion_bounds(positive, size, tail)
    return positive_low - negative_high, positive_high - negative_low


def _proportion_bounds(successes: int, n: int, tail: float) -> tuple[float, float]:
    return _lower_bound(successes, n, tail), _upper_bound(successes, n, tail)


def _lower_bound(successes: float, n: int, tail: float) -> float:
    """The p with P(X ≥ successes | n, p) = tail; 0 where nothing succeeded or nothing was tried."""
    if successes <= 0.0:
        return 0.0
    if successes >= n:
        return math.exp(math.log(tail) / n)
    return beta_quantile(tail, successes, n - successes + 1.0)


def _upper_bound(successes: float, n: int, tail: float) -> float:
    return 1.0 - _lower_bound(n - successes, n, tail)


def _check_confidence(confidence: float) -> None:
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"a confidence lies between 0.5 and 1, not {confidence}")
