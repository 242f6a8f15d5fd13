"""The noise floor: how far scores lie apart that differ in nothing but the seed, and what a change is worth beside that.

Seeds change initialisation, the order of rows and what dropout drops; the same update with another one scores a
little differently (Dodge et al. 2020, arXiv 2002.06305; Bouthillier et al. 2021, arXiv 2103.03098). The bounds of a change
(`significance`) speak of other eval examples under this seed, those here of other seeds on these examples.

One convention, as in `significance`: each end of an interval is a one-sided bound that holds with the given confidence.
Whether a change is beyond noise is decided by a two-sided test instead, corrected for all tasks that are tested together.
Both take scores over seeds as normal: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.2 (the mean, by Student's t)
and 7.2.3.1 (the standard deviation, by chi-square).

Accuracies move in steps of 1/n, so that seeds tie where their noise is less than a step. A tie is no certainty: no standard
deviation is taken for less than that of rounding, a uniform draw's from one step (`rounding_sd`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from service.evaluations.binomial import incomplete_beta, t_quantile

Standing = Literal["within_noise", "beyond_noise"]

_HALVINGS = 200


@dataclass(frozen=True, slots=True)
class Spread:
    """Holds how values lie that differ in the seed alone.

    `sd` is the sample standard deviation (n − 1), `sd_interval` and `mean_interval` bounds on what sd and mean would be
    over all seeds, `low` and `high` the least and the largest value.
    """

    mean: float
    sd: float
    sd_interval: tuple[float, float]
    mean_interval: tuple[float, float]
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Interpretation:
    """Holds a change beside the spread of the same change over seeds.

    `standing` is None where nothing could be tested, `ratio` the change in standard deviations, without its sign, and None
    where every seed gives the same.
    """

    standing: Standing | None
    ratio: float | None
    detail: str


def spread(values: Sequence[float], confidence: float, *, least_sd: float = 0.0) -> Spread:
    """Returns the spread of two values or more; each bound holds with `confidence`.

    With s the standard deviation of k values and ν = k − 1: mean ± t(c; ν)·s/√k, and s·√(ν/χ²(c; ν)) to
    s·√(ν/χ²(1 − c; ν)); all but the lower bound of the latter take `least_sd` where s is less. Raises ValueError for fewer
    than two values, or a confidence outside (0.5, 1).
    """
    if len(values) < 2:
        raise ValueError("one value has no spread")
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"a confidence lies between 0.5 and 1, not {confidence}")
    mean, sd, freedom = fmean(values), _deviation(values), len(values) - 1
    taken = max(sd, least_sd)
    reach = t_quantile(confidence, freedom) * taken / math.sqrt(len(values))
    lower = sd * math.sqrt(freedom / chi_square_quantile(confidence, freedom))
    upper = taken * math.sqrt(freedom / chi_square_quantile(1.0 - confidence, freedom))
    return Spread(mean, sd, (lower, upper), (mean - reach, mean + reach), min(values), max(values))


def rounding_sd(step: float) -> float:
    """Returns the standard deviation of what rounding to steps hides: a uniform draw's from one step, step/√12."""
    return step / math.sqrt(12.0)


def p_value_of_mean(over_seeds: Spread, *, seeds: int, least_sd: float = 0.0) -> float | None:
    """Returns the two-sided p-value of Student's t-test that the mean over all seeds is 0.

    With s the standard deviation, or `least_sd` where that is more, t = mean·√k/s and p = P(|T| > |t|) = I_x(ν/2, 1/2) at
    x = ν/(ν + t²) (DLMF 8.17; Abramowitz & Stegun 26.7.1). None where s is 0 and the mean is not: nothing to test it by.
    """
    if over_seeds.mean == 0.0:
        return 1.0
    sd, freedom = max(over_seeds.sd, least_sd), seeds - 1
    if sd == 0.0:
        return None
    t = over_seeds.mean / sd * math.sqrt(seeds)
    return incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t))


def interpret(
    change: float, over_seeds: Spread, *, seeds: int, p_value: float | None, tests: int, confidence: float
) -> Interpretation:
    """Says whether a change is more than another seed gives.

    It is where the mean change over seeds differs from 0, by `p_value` (of `tests` tests, corrected for that many) at
    1 − `confidence`, and the change has the sign of the mean. The mean is tested and not the version's own change, which
    may be a lucky draw; but a mean says nothing for a change of the other sign.
    """
    ratio = abs(change) / over_seeds.sd if over_seeds.sd else None
    if p_value is None:
        tie = f"all {seeds} seeds change the score by the very same {change:+.4g}, so that there is no noise to hold it against"
        return Interpretation(None, ratio, tie)
    found = _found(change, over_seeds, ratio, seeds=seeds, p_value=p_value, tests=tests)
    if p_value > 1.0 - confidence:
        return Interpretation("within_noise", ratio, f"the change is within what another seed gives: {found}")
    way = "gain" if over_seeds.mean > 0.0 else "lose"
    if change * over_seeds.mean <= 0.0:
        drawn = f"other seeds {way} on average and this version's change is the draw of its seed: {found}"
        return Interpretation("within_noise", ratio, drawn)
    return Interpretation("beyond_noise", ratio, f"the seeds {way} on average: {found}")


def _found(
    change: float, over_seeds: Spread, ratio: float | None, *, seeds: int, p_value: float, tests: int
) -> str:
    """The figures behind a standing, in words."""
    corrected = f", corrected after Holm for {tests} tasks" if tests > 1 else ""
    if ratio is None:
        return f"all {seeds} seeds change the score by the same {change:+.4g} (two-sided t-test, p = {p_value:.2g}{corrected})"
    return (
        f"over {seeds} seeds it is {over_seeds.mean:+.4g} on average (two-sided t-test, p = {p_value:.2g}{corrected});"
        f" this version's is {change:+.4g}, {ratio:.2g} standard deviations"
    )


def chi_square_quantile(probability: float, freedom: int) -> float:
    """Returns the x with P(χ² ≤ x) = probability, for a handful of degrees of freedom, by halving a bracket."""
    low, high = 0.0, 1.0
    while _chi_square(high, freedom) < probability:
        low, high = high, 2.0 * high
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _chi_square(middle, freedom) < probability else (low, middle)
    return 0.5 * (low + high)


def _chi_square(x: float, freedom: int) -> float:
    """P(χ² ≤ x) = P(ν/2, x/2), from P(1/2, y) = erf √y or P(1, y) = 1 − e^−y up by P(a + 1, y) = P(a, y) − y^a e^−y / Γ(a + 1).

    DLMF 7.11.1, 8.4.5 and 8.8.5.
    """
    y = x / 2.0
    if y == 0.0:
        return 0.0
    a, share = (0.5, math.erf(math.sqrt(y))) if freedom % 2 else (1.0, -math.expm1(-y))
    while a < freedom / 2.0:
        share -= math.exp(a * math.log(y) - y - math.lgamma(a + 1.0))
        a += 1.0
    return share


def _deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 where all values are one, to the last bit."""
    return 0.0 if min(values) == max(values) else stdev(values)
