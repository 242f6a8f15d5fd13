"""The noise floor's statistics against scipy, by hand, and against simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from service.evaluations.binomial import t_quantile
from service.evaluations.noise import (
    Interpretation,
    chi_square_quantile,
    interpret,
    p_value_of_mean,
    rounding_sd,
    spread,
)
from service.evaluations.significance import holm

CONFIDENCES = (0.51, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.999)


@pytest.mark.parametrize("freedom", range(1, 10))
def test_quantiles_are_those_of_scipy(freedom: int) -> None:
    for level in CONFIDENCES:
        assert t_quantile(level, freedom) == pytest.approx(stats.t.ppf(level, freedom), rel=1e-7)
        for probability in (level, 1.0 - level):
            expected = stats.chi2.ppf(probability, freedom)
            assert chi_square_quantile(probability, freedom) == pytest.approx(expected, rel=1e-7)


def test_the_spread_of_three_values_by_hand() -> None:
    found = spread([0.80, 0.84, 0.88], 0.95)
    assert (found.low, found.high, found.mean) == (0.80, 0.88, pytest.approx(0.84))
    assert found.sd == pytest.approx(0.04)  # √((0.04² + 0 + 0.04²) / 2)
    reach = 2.919986 * 0.04 / math.sqrt(3)  # t(0.95; 2) = 2.919986
    assert found.mean_interval == pytest.approx((0.84 - reach, 0.84 + reach), abs=1e-7)
    # χ²(0.95; 2) = −2 ln 0.05 = 5.991465 and χ²(0.05; 2) = −2 ln 0.95 = 0.102587
    bounds = (0.04 * math.sqrt(2 / 5.991465), 0.04 * math.sqrt(2 / 0.102587))
    assert found.sd_interval == pytest.approx(bounds, abs=1e-6)


@pytest.mark.parametrize("count", [2, 5, 10])
def test_each_bound_misses_as_rarely_as_promised(count: int) -> None:
    draws = np.random.default_rng(3).normal(0.1, 0.02, size=(2000, count))
    found = [spread(row.tolist(), 0.9) for row in draws]
    allowed = pytest.approx(0.1, abs=0.025)  # 3.7 standard errors of a share of one tenth
    assert np.mean([one.mean_interval[0] > 0.1 for one in found]) == allowed
    assert np.mean([one.mean_interval[1] < 0.1 for one in found]) == allowed
    assert np.mean([one.sd_interval[0] > 0.02 for one in found]) == allowed
    assert np.mean([one.sd_interval[1] < 0.02 for one in found]) == allowed


@pytest.mark.parametrize("values", [[], [0.5]])
def test_less_than_two_values_have_no_spread(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no spread"):
        spread(values, 0.95)


def test_p_values_are_those_of_scipys_t_test() -> None:
    for values in (
        [0.03, -0.01],
        [0.05, 0.04, 0.06],
        [-0.2, -0.21, -0.19, 0.1],
        [1e-3, 2e-3, 1e-3, 5e-3, 0.0],
    ):
        found = p_value_of_mean(spread(values, 0.95), seeds=len(values))
        assert found == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue, rel=1e-9)


def judged(changes: list[float], *, step: float = 0.0, tests: int = 1) -> Interpretation:
    """The first change beside all, where `tests` tasks are tested that are all alike."""
    least = rounding_sd(step)
    over_seeds = spread(changes, 0.95, least_sd=least)
    p_value = p_value_of_mean(over_seeds, seeds=len(changes), least_sd=least)
    corrected = None if p_value is None else holm([p_value] * tests)[0]
    return interpret(
        changes[0], over_seeds, seeds=len(changes), p_value=corrected, tests=tests, confidence=0.95
    )


def test_a_lucky_draw_is_within_what_another_seed_gives() -> None:
    found = judged([0.03, -0.01, 0.01])
    assert found.standing == "within_noise"
    assert found.ratio == pytest.approx(1.5)  # 0.03 / 0.02
    assert "the change is within what another seed gives" in found.detail
    assert "+0.01 on average" in found.detail
    assert "this version's is +0.03, 1.5 standard deviations" in found.detail


def test_a_loss_that_the_seeds_have_on_average_is_beyond_noise() -> None:
    found = judged([-0.05, -0.04, -0.06])
    assert found.standing == "beyond_noise"
    assert "the seeds lose on average" in found.detail
    assert "the seeds gain on average" in judged([0.05, 0.04, 0.06]).detail


def test_a_change_against_that_of_the_seeds_is_the_draw_of_its_own() -> None:
    found = judged([-0.01, 0.05, 0.05, 0.06, 0.05])
    assert found.standing == "within_noise"
    assert "other seeds gain on average and this version's change is the draw of its seed" in found.detail
    assert "this version's is -0.01" in found.detail
    assert "other seeds lose on average" in judged([0.01, -0.05, -0.05, -0.06, -0.05]).detail
    assert judged([0.0, 0.05, 0.05, 0.06, 0.05]).standing == "within_noise", "no change is no gain"


def test_a_change_is_tested_on_both_sides_and_with_all_other_tasks() -> None:
    changes = [0.03, 0.05, 0.055, 0.02]  # p = 0.018
    assert judged(changes).standing == "beyond_noise"
    assert judged(changes, tests=3).standing == "within_noise"
    assert "corrected after Holm for 3 tasks" in judged(changes, tests=3).detail
    assert judged([0.01, 0.06, 0.05]).standing == "within_noise", "p = 0.12, though a one-sided bound is near"
    assert judged([0.03, 0.07, 0.08]).standing == "within_noise", "p = 0.06: one side alone would say 0.03"


@pytest.mark.parametrize("step", [0.0, 0.005, 0.02], ids=["graded", "fine", "coarse"])
def test_a_report_without_a_true_change_rarely_has_a_task_beyond_noise(step: float) -> None:
    """Twenty tasks, three seeds of standard deviation 0.01: by chance some task is beyond noise in one report of twenty."""
    draws = np.random.default_rng(5).normal(0.0, 0.01, size=(400, 20, 3))
    least = rounding_sd(step)
    alarms = 0
    for report in np.round(draws / step) * step if step else draws:
        spreads = [spread(task, 0.95, least_sd=least) for task in report.tolist()]
        p_values = [p_value_of_mean(one, seeds=3, least_sd=least) or 0.0 for one in spreads]
        corrected = holm(p_values)
        alarms += any(
            interpret(
                task[0], one, seeds=3, p_value=p_value, tests=20, confidence=0.95
            ).standing == "beyond_noise"
            for task, one, p_value in zip(report.tolist(), spreads, corrected, strict=True)
        )  # fmt: skip
    assert alarms / len(draws) <= 0.05 + 0.033  # three standard errors of a share of one twentieth


def test_seeds_that_all_give_the_same_have_no_ratio_and_no_certainty() -> None:
    assert (judged([0.0, 0.0, 0.0]).standing, judged([0.0, 0.0, 0.0]).ratio) == ("within_noise", None)
    graded = judged([0.1, 0.1, 0.1])
    assert (graded.standing, graded.ratio) == (None, None)
    assert "no noise to hold it against" in graded.detail


def test_a_tie_of_accuracies_weighs_as_much_as_its_eval_set_is_fine() -> None:
    assert judged([0.1, 0.1], step=0.1).standing == "within_noise", "one example of ten, in two seeds"
    assert judged([0.1, 0.1, 0.1], step=0.001).standing == "beyond_noise", "a hundred of a thousand, in three"
    tied = spread([0.1, 0.1, 0.1], 0.95, least_sd=rounding_sd(0.1))
    assert (tied.sd, tied.sd_interval[0]) == (0.0, 0.0)
    assert tied.sd_interval[1] > rounding_sd(0.1) == pytest.approx(0.1 / math.sqrt(12))
    assert tied.mean_interval[0] < 0.1 < tied.mean_interval[1]
