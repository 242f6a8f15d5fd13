"""Forecasts from probes: hand-worked cases, and the intervals' coverage on simulated updates."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from service.evaluations.gate import GatePolicy
from service.forecasts.estimating import (
    Estimate,
    Past,
    Signs,
    estimate,
    outlook,
    updates_needed,
)
from service.forecasts.probes import Probe
from service.forecasts.queries import costs_of

SIGNS = Signs(score_change=-0.1, likelihood_change=-0.3, parent_score=0.8, new_loss=1.0, label_overlap=0.0)


def test_without_a_past_the_update_is_forecast_to_do_what_its_probe_did_and_no_interval_is_given() -> None:
    found = estimate(SIGNS, [], level=0.8)
    assert found == Estimate(change=pytest.approx(-0.2), interval=None, updates=0, needed=4)


def test_a_model_whose_probes_never_meant_anything_is_believed_more_the_longer_it_goes_on() -> None:
    harmless = [Past(f"u{number}", SIGNS, change=0.0) for number in range(30)]
    changes = [estimate(SIGNS, harmless[:count], level=0.8).change for count in (0, 1, 4, 30)]
    assert changes == sorted(changes)
    assert changes[-1] == pytest.approx(0.0, abs=0.01)


def test_one_regressor_by_hand() -> None:
    # Only the intercept differs from zero: with n past changes of y and the penalty p it is n·y / (n + p), p = 0.3.
    blank = Signs(0.0, 0.0, 0.0, 0.0, 0.0)
    past = [Past("a", blank, 0.5), Past("b", blank, 0.5), Past("c", blank, 0.5)]
    assert estimate(blank, past, level=0.8).change == pytest.approx(3 * 0.5 / 3.3, abs=1e-4)


def test_an_update_counts_once_however_many_tasks_it_had() -> None:
    crowd = [Past("a", SIGNS, -0.6)] * 9 + [Past("b", SIGNS, 0.0)]
    pair = [Past("a", SIGNS, -0.6), Past("b", SIGNS, 0.0)]
    assert estimate(SIGNS, crowd, level=0.8).change == pytest.approx(estimate(SIGNS, pair, level=0.8).change)


@pytest.mark.parametrize(("level", "needed"), [(0.5, 1), (0.75, 3), (0.8, 4), (0.9, 9)])
def test_an_interval_takes_as_many_updates_as_its_level_and_with_fewer_says_so(
    level: float, needed: int
) -> None:
    assert updates_needed(level) == needed
    past = [Past(f"u{number}", SIGNS, -0.1 * number) for number in range(needed)]
    few = estimate(SIGNS, past[:-1], level=level)
    assert (few.interval, few.updates, few.needed) == (None, needed - 1, needed)
    assert estimate(SIGNS, past, level=level).interval is not None


def test_many_tasks_of_few_updates_are_no_substitute_for_updates() -> None:
    past = [Past(f"u{number % 3}", SIGNS, -0.01 * number) for number in range(60)]
    assert estimate(SIGNS, past, level=0.8).interval is None


def test_forecasts_stay_where_scores_can_be() -> None:
    low = replace(SIGNS, score_change=-0.9, likelihood_change=-0.9, parent_score=0.3)
    assert estimate(low, [], level=0.8).change == -0.3
    past = [Past(f"u{number}", SIGNS, (-1.0) ** number) for number in range(6)]
    interval = estimate(low, past, level=0.8).interval
    assert interval is not None
    assert -0.3 <= interval[0] <= interval[1] <= 0.7
    assert estimate(replace(low, parent_score=-0.5), [], level=0.8, graded=True).change == -0.9


def simulated(generator: np.random.Generator, *, updates: int) -> list[Past]:
    """Updates with one to five old tasks each, whose errors an update's tasks share in part, and not normally."""
    past = []
    for number in range(updates):
        shared, slope = generator.standard_t(3) * 0.03, 3.0
        for _ in range(generator.integers(1, 6)):
            probe = -generator.exponential(0.03)
            signs = Signs(probe, probe + generator.normal(0, 0.01), generator.uniform(0.6, 0.9), 1.0, 0.0)
            past.append(Past(f"u{number}", signs, slope * probe + shared + generator.normal(0, 0.01)))
    return past


@pytest.mark.parametrize(("updates", "level"), [(5, 0.8), (12, 0.8), (12, 0.9)])
def test_intervals_hold_what_comes_as_often_as_they_say(updates: int, level: float) -> None:
    held = [holds(seed, updates=updates, level=level) for seed in range(600)]
    error = (level * (1 - level) / len(held)) ** 0.5
    assert np.mean(held) > level - 3 * error
    assert np.mean(held) < 0.99, "wide enough to hold anything would be no interval"


def holds(seed: int, *, updates: int, level: float) -> bool:
    """Whether the interval of the last simulated update's first task, made from the others, holds its change."""
    found = simulated(np.random.default_rng([seed, updates]), updates=updates + 1)
    target = next(one for one in found if one.update == f"u{updates}")
    past: Sequence[Past] = [one for one in found if one.update != target.update]
    interval = estimate(target.signs, past, level=level).interval
    assert interval is not None
    return interval[0] <= target.change <= interval[1]


@pytest.mark.parametrize(
    ("change", "interval", "size", "said"),
    [
        (0.0, (-0.001, 0.01), 1000, "likely_pass"),
        (0.0, (-0.1, 0.01), 1000, "at_risk"),
        (-0.1, (-0.2, -0.08), 1000, "likely_fail"),
        (0.0, (-0.001, 0.01), 100, "undecidable"),  # 149 rows without a flip would do
        (-0.2, (-0.3, -0.15), 100, "likely_fail"),
        (-0.1, None, 1000, "likely_fail"),
        (0.01, None, 1000, "likely_pass"),
    ],
)
def test_what_the_gate_would_say_at_both_ends(
    change: float, interval: tuple[float, float] | None, size: int, said: str
) -> None:
    estimated = Estimate(change, interval, updates=5, needed=4)
    assert outlook(GatePolicy(), estimated, size=size, graded=False) == said


def test_graded_scores_are_compared_with_the_margin() -> None:
    said = [
        outlook(GatePolicy(), Estimate(0.0, interval, 5, 4), size=10, graded=True)
        for interval in ((-0.01, 0.1), (-0.05, 0.1), (-0.1, -0.05))
    ]
    assert said == ["likely_pass", "at_risk", "likely_fail"]
    one = Estimate(0.0, (-0.01, 0.1), 5, 4)
    assert outlook(GatePolicy(), one, size=1, graded=True) == "undecidable"


def test_an_update_that_repeats_its_training_is_forecast_to_take_so_many_times_as_long() -> None:
    probe = Probe(
        steps=5, total_steps=50, rate_share=0.1, fresh_rows=80, replay_rows=0, prepare_seconds=2.0, train_seconds=3.0,
        scoring_seconds=1.0, scored_rows=10, tasks={},
    )  # fmt: skip
    assert costs_of(probe, training={}).training_seconds == 32.0  # 2 to prepare, 30 to train
    repeated = costs_of(probe, training={"repeats": 3})
    assert (repeated.training_seconds, repeated.total_steps, repeated.probe_seconds) == (92.0, 50, 6.0)
