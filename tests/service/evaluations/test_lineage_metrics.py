"""The metrics on matrices small enough to work by hand; the arithmetic stands beside each number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.evaluations.metrics import (
    Retention,
    average_accuracy,
    backward_transfer,
    best_earlier_score,
    flip_rates,
    forgetting,
    forward_transfer,
    intransigence,
    learning_accuracy,
    retention,
    summarise,
)

# Version 0 is a classifier without a head; versions 1, 2 and 3 learn tasks a, b and c in turn.
CLASSIFIER = [
    [None, None, None],
    [0.90, 0.00, 0.00],
    [0.60, 0.80, 0.10],
    [0.75, 0.50, 0.70],
]
IN_TURN = [1, 2, 3]

# A language model whose base can already do something.
GENERATIVE = [
    [0.30, 0.20, 0.10],
    [0.70, 0.25, 0.05],
    [0.65, 0.60, 0.30],
    [0.80, 0.50, 0.90],
]


def test_average_accuracy_is_the_mean_of_the_last_row() -> None:
    # (0.75 + 0.50 + 0.70) / 3 = 1.95 / 3
    assert average_accuracy(CLASSIFIER, IN_TURN) == pytest.approx(0.65)


def test_average_accuracy_leaves_out_tasks_that_were_never_learnt() -> None:
    # c was scored but not learnt: (0.75 + 0.50) / 2
    assert average_accuracy(CLASSIFIER, [1, 2, None]) == pytest.approx(0.625)


def test_learning_accuracy_is_the_mean_of_the_diagonal() -> None:
    # (0.90 + 0.80 + 0.70) / 3 = 2.40 / 3
    assert learning_accuracy(CLASSIFIER, IN_TURN) == pytest.approx(0.80)


def test_backward_transfer_compares_the_last_row_with_the_diagonal_on_old_tasks() -> None:
    # a: 0.75 − 0.90 = −0.15, b: 0.50 − 0.80 = −0.30, c is new; mean −0.225
    assert backward_transfer(CLASSIFIER, IN_TURN) == pytest.approx(-0.225)


def test_forgetting_takes_the_best_of_the_earlier_rows() -> None:
    # a: 0.90 − 0.75 = 0.15, b: 0.80 − 0.50 = 0.30; mean 0.225
    assert forgetting(CLASSIFIER, IN_TURN) == pytest.approx(0.225)


def test_forgetting_is_negative_when_an_old_task_is_better_than_ever() -> None:
    # a: max(0.30, 0.70, 0.65) − 0.80 = −0.10, b: max(0.20, 0.25, 0.60) − 0.50 = 0.10; mean 0
    assert best_earlier_score(GENERATIVE, 0) == 0.70
    assert forgetting(GENERATIVE, IN_TURN) == pytest.approx(0.0)
    # the last row is not among the earlier ones, or a's term would be 0 and the mean 0.05
    assert forgetting([row[:1] for row in GENERATIVE], [1]) == pytest.approx(-0.10)


def test_forgetting_counts_what_the_base_could_do() -> None:
    # the best earlier score is the base's: 0.60 − 0.50
    assert forgetting([[0.60], [0.40], [0.50]], [1]) == pytest.approx(0.10)


def test_forward_transfer_is_the_gain_over_the_base_before_a_tasks_own_turn() -> None:
    # b: R(1, b) − base = 0.25 − 0.20 = 0.05, c: R(2, c) − base = 0.30 − 0.10 = 0.20; mean 0.125
    assert forward_transfer(GENERATIVE, IN_TURN) == pytest.approx(0.125)


def test_forward_transfer_of_a_classifier_without_a_base_score_is_none() -> None:
    assert forward_transfer(CLASSIFIER, IN_TURN) is None


def test_forward_transfer_uses_the_tasks_whose_base_score_exists() -> None:
    matrix = [[None, None, 0.10], *GENERATIVE[1:]]
    # b has no base score; c: 0.30 − 0.10
    assert forward_transfer(matrix, IN_TURN) == pytest.approx(0.20)


def test_retention_is_relative_to_the_first_score_and_names_the_worst() -> None:
    # a: 0.75 / 0.90 = 0.8333, b: 0.50 / 0.80 = 0.625; mean 0.72917
    found = retention(CLASSIFIER, IN_TURN)
    assert found == Retention(mean=pytest.approx(0.7291667), worst=pytest.approx(0.625))


def test_retention_leaves_out_a_task_that_was_learnt_at_zero() -> None:
    # a: 0.5 / 0 has no value; b: 0.4 / 0.8
    matrix = [[None, None], [0.0, 0.8], [0.5, 0.4]]
    found = retention(matrix, [1, 1])
    assert found is not None
    assert found.mean == pytest.approx(0.5)


def test_intransigence_is_the_shortfall_from_a_joint_reference() -> None:
    # a: 0.92 − 0.90 = 0.02, b has no reference, c: 0.80 − 0.70 = 0.10; mean 0.06
    assert intransigence(CLASSIFIER, IN_TURN, [0.92, None, 0.80]) == pytest.approx(0.06)


def test_flip_rates_divide_by_all_paired_examples() -> None:
    found = flip_rates(negative=3, positive=5, size=200)
    assert found is not None
    assert (found.negative, found.positive) == (0.015, 0.025)
    assert flip_rates(0, 0, 0) is None
    with pytest.raises(ValueError, match="do not fit"):
        flip_rates(3, 5, 7)


def test_a_task_learnt_again_keeps_the_score_of_its_first_version() -> None:
    # a is learnt at version 1 and again at 3, where it reaches 0.95; learnt_at stays 1
    matrix = [[None], [0.90], [0.60], [0.95]]
    assert learning_accuracy(matrix, [1]) == 0.90
    assert backward_transfer(matrix, [1]) == pytest.approx(0.05)  # 0.95 − 0.90


def test_tasks_learnt_together_share_a_row() -> None:
    matrix = [[None, None, None], [0.8, 0.6, 0.0], [0.7, 0.6, 0.9]]
    # a: 0.7 − 0.8, b: 0.6 − 0.6; mean −0.05
    assert backward_transfer(matrix, [1, 1, 2]) == pytest.approx(-0.05)


def test_a_missing_score_takes_the_task_out_and_never_counts_as_zero() -> None:
    matrix = [[None, None], [0.9, None], [None, 0.8], [0.6, None]]
    assert average_accuracy(matrix, [1, 2]) == 0.6  # b has no last score
    assert learning_accuracy(matrix, [1, 2]) == pytest.approx(0.85)  # (0.9 + 0.8) / 2
    assert backward_transfer(matrix, [1, 2]) == pytest.approx(-0.3)  # a alone
    assert forgetting(matrix, [1, 2]) == pytest.approx(0.3)


def test_after_the_first_update_nothing_old_is_there_to_be_measured() -> None:
    found = summarise([[None], [0.9]], [1])
    assert (found.average_accuracy, found.learning_accuracy) == (0.9, 0.9)
    assert found.backward_transfer is found.forward_transfer is found.forgetting is None
    assert found.stability is found.worst_retention is found.intransigence is None


def test_the_untouched_base_has_no_metrics() -> None:
    found = summarise([[None, None]], [None, None])
    assert found.average_accuracy is None
    assert found.learning_accuracy is None


def test_the_summary_holds_every_metric() -> None:
    found = summarise(GENERATIVE, IN_TURN, reference=[0.7, 0.7, 0.9])
    assert found.average_accuracy == pytest.approx(2.2 / 3)  # 0.80 + 0.50 + 0.90
    assert found.learning_accuracy == pytest.approx(2.2 / 3)  # 0.70 + 0.60 + 0.90
    assert found.backward_transfer == pytest.approx(0.0)  # (0.10 − 0.10) / 2
    assert found.forward_transfer == pytest.approx(0.125)
    assert found.forgetting == pytest.approx(0.0)
    assert found.stability == pytest.approx((0.80 / 0.70 + 0.50 / 0.60) / 2)
    assert found.worst_retention == pytest.approx(0.50 / 0.60)
    assert found.intransigence == pytest.approx(0.1 / 3)  # (0 + 0.1 + 0) / 3


@pytest.mark.parametrize(
    ("matrix", "learnt_at", "words"),
    [
        ([], [], "no rows"),
        ([[None, None], [0.5]], [1, 1], "row 1 has 1 scores"),
        ([[None], [0.5]], [2], "cannot have been learnt at row 2"),
        ([[None], [0.5]], [-1], "cannot have been learnt at row -1"),
    ],
)
def test_a_matrix_that_does_not_fit_together_is_refused(
    matrix: list[list[float | None]], learnt_at: list[int | None], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        summarise(matrix, learnt_at)


def test_a_reference_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 reference scores for 3 tasks"):
        intransigence(CLASSIFIER, IN_TURN, [0.9, 0.9])


@st.composite
def full_lineages(draw: st.DrawFn) -> tuple[list[list[float | None]], list[int | None]]:
    versions, tasks = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    score = st.floats(0, 1)
    scored = [list(draw(st.tuples(*[score] * tasks))) for _ in range(versions)]
    learnt = list(draw(st.tuples(*[st.integers(1, versions)] * tasks)))
    return [[None] * tasks, *scored], learnt


@settings(deadline=None)
@given(full_lineages())
def test_forgetting_is_never_less_than_what_backward_transfer_lost(
    lineage: tuple[list[list[float | None]], list[int | None]],
) -> None:
    # the best earlier score is at least the first one, so F ≥ −BWT
    lost, transferred = forgetting(*lineage), backward_transfer(*lineage)
    assert (lost is None) == (transferred is None)
    if lost is not None and transferred is not None:
        assert lost >= -transferred - 1e-12


@settings(deadline=None)
@given(full_lineages(), st.randoms())
def test_no_metric_depends_on_the_order_of_tasks(
    lineage: tuple[list[list[float | None]], list[int | None]], shuffle: object
) -> None:
    matrix, learnt = lineage
    order = list(range(len(learnt)))
    shuffle.shuffle(order)
    moved = summarise([[row[i] for i in order] for row in matrix], [learnt[i] for i in order])
    original = summarise(matrix, learnt)
    for name in ("average_accuracy", "learning_accuracy", "backward_transfer", "forgetting", "stability"):
        assert getattr(moved, name) == pytest.approx(getattr(original, name))


# A language model: the base has scores (nats per token); task a is guarded text that nobody learns, b is learnt by 1.
LANGUAGE = [
    [-3.0, -2.5],
    [-3.2, -1.0],
    [-3.1, -1.4],
]


def test_a_guarded_task_is_old_from_the_base_on_and_is_no_learning() -> None:
    assert forgetting(LANGUAGE, [0, 1]) == pytest.approx((0.1 + 0.4) / 2)
    assert backward_transfer(LANGUAGE, [0, 1]) == pytest.approx((-0.1 - 0.4) / 2)
    assert learning_accuracy(LANGUAGE, [0, 1]) == -1.0


def test_retention_of_log_likelihoods_is_perplexity_then_over_perplexity_now() -> None:
    kept = retention(LANGUAGE, [0, 1], logarithmic=True)
    assert kept is not None
    assert kept.worst == pytest.approx(math.exp(1.0) / math.exp(1.4))
    assert kept.mean == pytest.approx((math.exp(-0.1) + math.exp(-0.4)) / 2)
