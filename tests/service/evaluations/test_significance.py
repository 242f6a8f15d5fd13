"""The statistics against scipy, against exact enumeration over all flip rates, and against simulation."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binom, binomtest, ttest_1samp

from service.evaluations.binomial import beta_quantile, incomplete_beta
from service.evaluations.significance import (
    clopper_pearson,
    delta_interval,
    holm,
    mcnemar_exact,
    needed_graded_size,
    noninferiority,
    paired_bootstrap,
    shown_bounds,
    smallest_deciding_size,
)

COUNTS = [
    (0, 1),
    (1, 1),
    (0, 149),
    (1, 149),
    (3, 20),
    (21, 149),
    (148, 149),
    (500, 1000),
    (1, 10**6),
    (142_857, 10**6),
    (999_999, 10**6),
]


@pytest.mark.parametrize(("successes", "n"), COUNTS)
@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.975, 0.9999])
def test_clopper_pearson_agrees_with_scipy(successes: int, n: int, confidence: float) -> None:
    lower, upper = clopper_pearson(successes, n, confidence)
    textbook = binomtest(successes, n).proportion_ci(confidence_level=2 * confidence - 1, method="exact")
    assert lower == pytest.approx(textbook.low, abs=1e-11, rel=1e-9)
    assert upper == pytest.approx(textbook.high, abs=1e-11, rel=1e-9)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 300), st.floats(0.51, 0.9999))
def test_the_bounds_are_where_the_exact_tails_equal_the_error(k: int, n: int, confidence: float) -> None:
    k = min(k, n)
    lower, upper = clopper_pearson(k, n, confidence)
    assert 0.0 <= lower <= k / n <= upper <= 1.0
    if k > 0:
        assert binom.sf(k - 1, n, lower) == pytest.approx(1 - confidence, rel=1e-8)
    if k < n:
        assert binom.cdf(k, n, upper) == pytest.approx(1 - confidence, rel=1e-8)


@settings(deadline=None)
@given(st.floats(0.05, 1e6), st.floats(1, 1e6), st.floats(1e-6, 1 - 1e-6))
def test_the_incomplete_beta_function_and_its_inverse_agree_with_scipy(a: float, b: float, p: float) -> None:
    x = float(beta.ppf(p, a, b))
    if 1e-12 < x < 1 - 1e-12:
        assert incomplete_beta(a, b, x) == pytest.approx(float(beta.cdf(x, a, b)), abs=1e-9)
        assert float(beta.cdf(beta_quantile(p, a, b), a, b)) == pytest.approx(p, abs=1e-9)


def test_a_proportion_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        clopper_pearson(3, 2, 0.95)
    with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
        clopper_pearson(1, 2, 95)


def test_with_no_examples_nothing_is_known() -> None:
    assert clopper_pearson(0, 0, 0.95) == (0.0, 1.0)
    assert delta_interval(0, 0, 0, 0.95) == (-1.0, 1.0)
    assert noninferiority(0, 0, 0, 0.02, 0.95).decision == "inconclusive"


def test_without_flips_a_margin_of_two_percent_takes_149_examples() -> None:
    # 1 − 0.05^(1/149) = 0.019905, 1 − 0.05^(1/148) = 0.020038
    assert smallest_deciding_size(0.02, 0.95) == 149
    assert noninferiority(0, 0, 149, 0.02, 0.95).decision == "pass"
    short = noninferiority(0, 0, 148, 0.02, 0.95)
    assert (short.decision, short.needed_size) == ("inconclusive", 149)


@settings(deadline=None)
@given(st.floats(0.002, 0.5), st.floats(0.6, 0.999))
def test_the_smallest_deciding_size_is_the_first_that_passes(margin: float, confidence: float) -> None:
    needed = smallest_deciding_size(margin, confidence)
    assert needed is not None
    assert noninferiority(0, 0, needed, margin, confidence).decision == "pass"
    if needed > 1:
        assert noninferiority(0, 0, needed - 1, margin, confidence).decision == "inconclusive"


def test_no_size_shows_that_nothing_at_all_was_lost() -> None:
    assert smallest_deciding_size(0.0, 0.95) is None


def test_the_interval_is_made_of_the_bounds_of_both_flip_rates() -> None:
    negative, positive = clopper_pearson(10, 300, 0.95), clopper_pearson(2, 300, 0.95)
    lower, upper = delta_interval(10, 2, 300, 0.95)
    assert lower == pytest.approx(positive[0] - negative[1])
    assert upper == pytest.approx(positive[1] - negative[0])


@pytest.mark.parametrize(
    ("negative", "positive", "size", "decision"),
    [
        (0, 0, 1000, "pass"),
        (5, 5, 1000, "pass"),
        (20, 20, 300, "inconclusive"),
        (10, 2, 300, "inconclusive"),
        (40, 2, 300, "fail"),
        (0, 40, 300, "pass"),
    ],
)
def test_the_decision_follows_the_bounds(negative: int, positive: int, size: int, decision: str) -> None:
    assert noninferiority(negative, positive, size, 0.02, 0.95).decision == decision


def test_more_flips_than_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 10 examples"):
        delta_interval(6, 5, 10, 0.95)


@pytest.mark.parametrize(
    ("negative", "positive", "size"), [(5, 5, 300), (10, 2, 300), (1, 0, 100), (0, 3, 50)]
)
def test_the_needed_size_decides_and_a_much_smaller_one_does_not(
    negative: int, positive: int, size: int
) -> None:
    found = noninferiority(negative, positive, size, 0.02, 0.95)
    assert found.needed_size is not None
    factor = -(-found.needed_size // size)  # whole multiples keep the flip rates exactly
    enough = noninferiority(negative * factor, positive * factor, size * factor, 0.02, 0.95)
    assert enough.decision != "inconclusive"
    if factor > 1:
        less = noninferiority(
            negative * (factor - 1), positive * (factor - 1), size * (factor - 1), 0.02, 0.95
        )
        assert less.decision == "inconclusive"


def test_no_size_decides_a_regression_of_exactly_the_margin() -> None:
    # (2 − 8) / 300 = −0.02
    assert noninferiority(8, 2, 300, 0.02, 0.95).needed_size is None


def test_a_size_that_nobody_collects_is_not_offered() -> None:
    # −0.0200001 against −0.02 would take more than 10^9 examples
    assert noninferiority(200_001, 0, 10_000_000, 0.02, 0.95).needed_size is None


def test_a_single_flip_among_many_examples_has_a_needed_size_too() -> None:
    # the search meets counts of a millionth, whose bounds are too small for a float
    found = noninferiority(1, 0, 1_000_000, 0.02, 0.95)
    assert found.decision == "pass"
    assert found.needed_size is not None
    assert 149 <= found.needed_size <= 160


@cache
def _bounds(size: int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    pairs = [clopper_pearson(count, size, confidence) for count in range(size + 1)]
    return np.array([low for low, _ in pairs]), np.array([high for _, high in pairs])


def _exact_rates(size: int, margin: float, positive: float, negative: float) -> tuple[float, float]:
    """The chances to pass and to fail at the given true flip rates, summed over all possible counts."""
    low, high = _bounds(size, 0.95)
    passes = fails = 0.0
    given_no_gain = negative / (1 - positive)
    for gained, weight in enumerate(binom.pmf(np.arange(size + 1), size, positive)):
        if weight < 1e-15:
            continue
        last_pass = min(int(np.searchsorted(high, low[gained] + margin, side="left")) - 1, size - gained)
        first_fail = int(np.searchsorted(low, high[gained] + margin, side="right"))
        passes += weight * binom.cdf(last_pass, size - gained, given_no_gain)
        fails += weight * binom.sf(first_fail - 1, size - gained, given_no_gain)
    return passes, fails


@pytest.mark.parametrize("size", [40, 149, 237, 313])
@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05, 0.1])
def test_a_regression_of_the_margin_passes_or_fails_with_at_most_five_percent(
    size: int, margin: float
) -> None:
    for positive in (0.0, 1e-4, 5e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.4):
        passes, fails = _exact_rates(size, margin, positive, positive + margin)
        assert passes <= 0.05, f"false pass {passes} at a gain rate of {positive}"
        assert fails <= 0.05, f"false fail {fails} at a gain rate of {positive}"


def _simulated_rates(
    size: int, margin: float, positive: float, negative: float, seed: int
) -> tuple[float, float]:
    draws = np.random.default_rng(seed).multinomial(
        size, [negative, positive, 1 - negative - positive], size=4000
    )
    pairs, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    decisions = [
        noninferiority(int(lost), int(gained), size, margin, 0.95).decision for lost, gained in pairs
    ]
    share = {
        name: sum(c for d, c in zip(decisions, counts, strict=True) if d == name) / 4000 for name in decisions
    }
    return share.get("pass", 0.0), share.get("fail", 0.0)


def test_simulated_false_passes_stay_under_five_percent_where_they_are_likeliest() -> None:
    # without any gain only one bound can err, which is the worst case; 3 standard errors of 4000 draws are 1 %
    passes, _ = _simulated_rates(149, 0.02, positive=0.0, negative=0.02, seed=11)
    assert 0.03 < passes < 0.06
    passes, _ = _simulated_rates(120, 0.05, positive=0.02, negative=0.07, seed=12)
    assert passes <= 0.05


@pytest.mark.parametrize(("positive", "negative"), [(0.0, 0.002), (0.01, 0.015), (0.005, 0.12)])
def test_the_simulated_power_is_the_exact_one(positive: float, negative: float) -> None:
    simulated = _simulated_rates(237, 0.05, positive, negative, seed=13)
    exact = _exact_rates(237, 0.05, positive, negative)
    for observed, expected in zip(simulated, exact, strict=True):
        assert abs(observed - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4000) + 1e-9


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_mcnemars_test_is_the_exact_sum_of_binomial_coefficients(n01: int, n10: int) -> None:
    flipped = n01 + n10
    tail = Fraction(2 * sum(comb(flipped, count) for count in range(min(n01, n10) + 1)), 2**flipped)
    assert mcnemar_exact(n01, n10) == pytest.approx(float(min(Fraction(1), tail)), rel=1e-10, abs=1e-300)


@pytest.mark.parametrize(("n01", "n10"), [(5, 1), (0, 7), (30, 12), (200, 260)])
def test_mcnemars_test_agrees_with_scipy(n01: int, n10: int) -> None:
    assert mcnemar_exact(n01, n10) == pytest.approx(binomtest(n01, n01 + n10).pvalue, rel=1e-10)


def test_mcnemars_test_by_hand() -> None:
    # 1 of 6 flips is positive: 2·(C(6,0) + C(6,1)) / 2^6 = 14 / 64
    assert mcnemar_exact(5, 1) == pytest.approx(14 / 64)
    assert mcnemar_exact(0, 0) == mcnemar_exact(4, 4) == 1.0
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


def test_holms_correction_by_hand() -> None:
    # sorted 0.01·4 = 0.04, 0.02·3 = 0.06, 0.03·2 = 0.06, 0.5·1 = 0.5
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holms_correction_keeps_the_order_and_never_lowers_a_p_value(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, adjusted, strict=True))
    by_raw = sorted(zip(p_values, adjusted, strict=True))
    assert [after for _, after in by_raw] == sorted(adjusted)


def test_the_bootstrap_repeats_itself_and_depends_on_its_seed() -> None:
    differences = np.random.default_rng(0).exponential(size=50)
    first = paired_bootstrap(differences, 0.95, seed=1, resamples=500)
    assert paired_bootstrap(differences, 0.95, seed=1, resamples=500) == first
    assert paired_bootstrap(differences, 0.95, seed=2, resamples=500) != first


def test_the_bootstrap_agrees_with_the_normal_bounds_on_many_normal_differences() -> None:
    differences = np.random.default_rng(3).normal(loc=-0.1, size=2000)
    error = 1.6449 * differences.std() / np.sqrt(2000)
    lower, upper = paired_bootstrap(differences, 0.95, seed=0, resamples=4000)
    assert lower == pytest.approx(differences.mean() - error, abs=0.1 * error)
    assert upper == pytest.approx(differences.mean() + error, abs=0.1 * error)


def test_each_bootstrap_bound_holds_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    below = sum(
        paired_bootstrap(generator.exponential(size=200), 0.95, seed=trial, resamples=400)[0] <= 1.0
        for trial in range(300)
    )
    assert 0.91 <= below / 300 <= 0.99


def false_passes(draw: Callable[[int], NDArray[np.float64]], size: int, trials: int = 1000) -> float:
    """How often the lower bound lies above the true mean, 0: a loss of exactly the margin that passes."""
    return (
        sum(paired_bootstrap(draw(size), 0.95, seed=trial, resamples=400)[0] > 0.0 for trial in range(trials))
        / trials
    )


@pytest.mark.parametrize("size", [2, 5, 10, 30])
def test_a_loss_of_the_margin_passes_one_time_in_twenty_however_few_the_examples(size: int) -> None:
    generator = np.random.default_rng(size)
    found = false_passes(lambda n: generator.normal(size=n), size)
    assert found <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize(("size", "rate"), [(2, 0.145), (5, 0.08), (10, 0.08), (30, 0.055)])
def test_rare_great_losses_are_missed_as_often_as_the_documentation_says(size: int, rate: float) -> None:
    generator = np.random.default_rng(size)
    found = false_passes(lambda n: 1.0 - generator.exponential(size=n), size)
    assert found == pytest.approx(rate, abs=3 * np.sqrt(rate * (1 - rate) / 1000))


@pytest.mark.parametrize("size", [2, 3, 8, 40])
def test_the_bounds_of_graded_changes_are_nowhere_narrower_than_students(size: int) -> None:
    differences = np.random.default_rng(size).normal(size=size)
    lower, upper = paired_bootstrap(differences, 0.95, seed=0, resamples=400)
    student = ttest_1samp(differences, 0.0).confidence_interval(0.9)
    assert lower <= student.low + 1e-9
    assert upper >= student.high - 1e-9


def test_one_difference_is_bounded_by_nothing_and_equal_ones_by_themselves() -> None:
    assert paired_bootstrap([-0.5], 0.95, seed=0) == (-np.inf, np.inf)
    assert shown_bounds((-np.inf, np.inf)) is None
    assert paired_bootstrap([-0.5, -0.5], 0.95, seed=0) == (-0.5, -0.5)
    assert shown_bounds((-0.5, -0.5)) == [-0.5, -0.5]


def test_the_size_that_would_decide_is_found_from_the_spread_of_the_changes() -> None:
    # s = 0.1 on 5 examples: half width 2.1318·0.1/√5. To see 0 apart from −0.02 takes t(n − 1)·0.1 < 0.02·√n:
    # at 69 it is 0.16676 against 0.16613, at 70 it is 0.16672 against 0.16733.
    half = 2.131847 * 0.1 / 5**0.5
    assert needed_graded_size(0.0, (-half, half), 5, bound=-0.02, confidence=0.95) == 70
    assert needed_graded_size(-0.04, (-0.04 - half, -0.04 + half), 5, bound=-0.02, confidence=0.95) == 70
    # The bound below alone stands between it and a pass.
    assert needed_graded_size(0.0, (-half, 9.0), 5, bound=-0.02, confidence=0.95) == 70


def test_no_size_decides_at_the_bound_itself_or_without_a_spread() -> None:
    assert needed_graded_size(-0.02, (-0.1, 0.1), 5, bound=-0.02, confidence=0.95) is None
    assert needed_graded_size(0.0, (-np.inf, np.inf), 1, bound=-0.02, confidence=0.95) is None


def test_the_bootstrap_refuses_nothing_and_what_is_not_a_number() -> None:
    for differences in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="at least one finite"):
            paired_bootstrap(differences, 0.95, seed=0)
