"""The noise floor's statistics against scipy, by hand, and against simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from service.evaluations.noise import chi_square_quantile, interpret, spread, t_quantile

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


def judged(changes: list[float]) -> tuple[str, float | None, str]:
    found = interpret(changes[0], spread(changes, 0.95), seeds=len(changes), confidence=0.95)
    return found.standing, found.ratio, found.detail


def test_a_lucky_draw_is_within_what_another_seed_gives() -> None:
    standing, ratio, detail = judged([0.03, -0.01, 0.01])
    assert standing == "within_noise"
    assert ratio == pytest.approx(1.5)  # 0.03 / 0.02
    assert "the change is within what another seed gives" in detail


def test_a_loss_that_every_seed_has_is_beyond_noise() -> None:
    standing, _, detail = judged([-0.05, -0.04, -0.06])
    assert standing == "beyond_noise"
    assert "the seeds agree on a loss" in detail
    assert "the seeds agree on a gain" in judged([0.05, 0.04, 0.06])[2]


def test_seeds_that_all_give_the_same_have_no_ratio() -> None:
    assert judged([0.0, 0.0, 0.0])[:2] == ("within_noise", None)
    assert judged([0.1, 0.1, 0.1])[:2] == ("beyond_noise", None)
