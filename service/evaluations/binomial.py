"""Exact binomial tails, and Student's, with their inverses, as the regularised incomplete beta function I_x(a, b).

P(X ≥ k) for X ~ Bin(n, p) is I_p(k, n − k + 1). The service needs only this much of a statistics library,
at arguments up to a few million, so it does not carry one.
"""

from __future__ import annotations

import math
from statistics import NormalDist

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_TINY = 1e-300
_EPSILON = 2.0**-52
_MAX_TERMS = 100_000
_MAX_STEPS = 200


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Returns I_x(a, b), the chance that a Beta(a, b) variable is at most x; a and b are positive.

    Lentz's evaluation of the continued fraction (DLMF 8.17.22), on the side of the mean where it converges in
    O(√max(a, b)) terms. Absolute error near 1e-14 for arguments up to 1e6.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _left_tail(b, a, 1.0 - x)
    return _left_tail(a, b, x)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Returns the x with I_x(a, b) = probability, for 0 < probability < 1.

    Newton's method on the distribution function, kept inside a shrinking bracket: a step that leaves it is
    replaced by its midpoint, so the method cannot diverge.
    """
    low, high = 0.0, 1.0
    x = _normal_guess(probability, a, b)
    for _ in range(_MAX_STEPS):
        error = incomplete_beta(a, b, x) - probability
        if error > 0.0:
            high = x
        else:
            low = x
        density = _power_term(a, b, x) / (x * (1.0 - x))
        step = error / density if density > _TINY else math.inf
        if abs(step) <= 2 * _EPSILON * x or high - low <= 2 * _EPSILON * high:
            return x
        x = x - step if low < x - step < high else 0.5 * (low + high)
    return x


def t_quantile(probability: float, freedom: int) -> float:
    """Returns the t with P(T ≤ t) = probability > 0.5 for Student's T with so many degrees of freedom.

    P(|T| > t) = I_x(ν/2, 1/2) at x = ν/(ν + t²) (DLMF 8.17; Abramowitz & Stegun 26.7.1).
    """
    x = beta_quantile(2.0 * (1.0 - probability), freedom / 2.0, 0.5)
    return math.sqrt(freedom * (1.0 / x - 1.0))


def _normal_guess(probability: float, a: float, b: float) -> float:
    mean = a / (a + b)
    deviation = math.sqrt(mean * (1.0 - mean) / (a + b + 1.0))
    guess = mean + NormalDist().inv_cdf(probability) * deviation
    return guess if 0.0 < guess < 1.0 else mean


def _left_tail(a: float, b: float, x: float) -> float:
    return _power_term(a, b, x) * _continued_fraction(a, b, x) / a


def _continued_fraction(a: float, b: float, x: float) -> float:
    c = 1.0
    d = 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        d = 1.0 / _away_from_zero(1.0 + even * d)
        c = _away_from_zero(1.0 + even / c)
        value *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        d = 1.0 / _away_from_zero(1.0 + odd * d)
        c = _away_from_zero(1.0 + odd / c)
        value *= d * c
        if abs(d * c - 1.0) < 2 * _EPSILON:
            break
    return value


def _power_term(a: float, b: float, x: float) -> float:
    """x^a (1 − x)^b / B(a, b), written around the mean so that large arguments lose no digits.

    Differences of three log-gammas near 1e7 would leave only nine digits; here they shrink to Stirling's
    remainders and what is left is the distance of x from the mean (Loader 2000, "Fast and accurate
    computation of binomial probabilities").
    """
    total = a + b
    mean, rest = a / total, b / total
    exponent = a * _log_ratio(x, mean, x - mean) + b * _log_ratio(1.0 - x, rest, mean - x)
    remainder = _stirling_remainder(total) - _stirling_remainder(a) - _stirling_remainder(b)
    return math.sqrt(mean * b / (2.0 * math.pi)) * math.exp(exponent + remainder)


def _log_ratio(value: float, mean: float, difference: float) -> float:
    """ln(value / mean), through their difference (known more exactly) where they are close."""
    return math.log1p(difference / mean) if abs(difference) < 0.5 * mean else math.log(value / mean)


def _stirling_remainder(z: float) -> float:
    """ln Γ(z) minus Stirling's (z − 1/2) ln z − z + ln √(2π) (DLMF 5.11.1)."""
    if z < 12.0:
        return math.lgamma(z) - ((z - 0.5) * math.log(z) - z + _HALF_LOG_TWO_PI)
    inverse = 1.0 / z
    square = inverse * inverse
    series = 1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    return series * inverse


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
