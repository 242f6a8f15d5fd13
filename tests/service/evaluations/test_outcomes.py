from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.evaluations.outcomes import (
    NO_LABEL,
    Outcomes,
    accuracy,
    carried_scores,
    flips,
    graded_interval,
    mean_score,
    pack,
    pair,
    unpack,
)


def outcomes(ids: list[int], correct: list[bool], graded: list[float] | None = None) -> Outcomes:
    return Outcomes(
        example_ids=np.array(ids, dtype=np.int64),
        correct=np.array(correct, dtype=np.bool_),
        predicted=np.arange(len(ids), dtype=np.int32),
        confidence=np.full(len(ids), 0.5, dtype=np.float32),
        graded=None if graded is None else np.array(graded, dtype=np.float32),
    )


@st.composite
def any_outcomes(draw: st.DrawFn) -> Outcomes:
    ids = draw(st.lists(st.integers(0, 2**62), unique=True, max_size=40))
    size = len(ids)
    top = draw(st.sampled_from([3, 2**15 - 1, 2**15, 2**31 - 1]))
    graded = draw(st.none() | st.just([-1.5] * size))
    return Outcomes(
        example_ids=np.array(ids, dtype=np.int64),
        correct=np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=np.bool_),
        predicted=np.array(
            draw(st.lists(st.integers(NO_LABEL, top), min_size=size, max_size=size)), dtype=np.int32
        ),
        confidence=np.array(
            draw(st.lists(st.floats(0, 1, width=16), min_size=size, max_size=size)), dtype=np.float32
        ),
        graded=None if graded is None else np.array(graded, dtype=np.float32),
    )


@settings(deadline=None)
@given(any_outcomes(), st.randoms(use_true_random=False))
def test_packed_outcomes_come_back_in_the_order_of_the_eval_set(before: Outcomes, shuffle: object) -> None:
    places = list(range(len(before)))
    shuffle.shuffle(places)
    order = before.example_ids[places]
    after = unpack(pack(before, order), order)
    np.testing.assert_array_equal(after.example_ids, order)
    np.testing.assert_array_equal(after.correct, before.correct[places])
    np.testing.assert_array_equal(after.predicted, before.predicted[places])
    np.testing.assert_array_equal(after.confidence, before.confidence[places])
    assert (after.graded is None) == (before.graded is None)
    if after.graded is not None and before.graded is not None:
        np.testing.assert_array_equal(after.graded, before.graded[places])


def test_packing_takes_an_eighth_of_a_byte_for_correct_and_two_for_a_small_label() -> None:
    packed = pack(outcomes(list(range(1000)), [True] * 1000), np.arange(1000))
    assert (len(packed.correct), len(packed.predicted), len(packed.confidence)) == (125, 2000, 2000)


def test_the_stored_bytes_do_not_change_between_releases() -> None:
    packed = pack(outcomes([7, 3], [True, False]), np.array([3, 7]))
    assert packed.correct == b"\x40"  # 01, first example in the highest bit
    assert packed.predicted == b"\x01\x00\x00\x00"
    assert packed.confidence == b"\x00\x38\x00\x38"


def test_outcomes_that_do_not_cover_the_eval_set_are_refused() -> None:
    scored = outcomes([1, 2, 3], [True] * 3)
    with pytest.raises(ValueError, match="not scored on"):
        pack(scored, np.array([1, 2, 3, 4]))
    with pytest.raises(ValueError, match="has 2 examples, the outcomes 3"):
        pack(scored, np.array([1, 2]))


def test_bytes_of_another_eval_set_are_refused() -> None:
    packed = pack(outcomes([1, 2, 3], [True] * 3), np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="this eval set needs 4"):
        unpack(packed, np.array([1, 2, 3, 4]))


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="correct has shape"):
        outcomes([1, 2], [True])


def test_an_example_scored_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="name an example twice"):
        outcomes([1, 1], [True, False])


def test_versions_are_paired_on_the_examples_both_were_scored_on() -> None:
    before = outcomes([5, 1, 9], [True, False, True])
    after = outcomes([9, 7, 5], [False, True, True])
    paired = pair(before, after)
    assert paired.example_ids.tolist() == [5, 9]
    assert paired.a_correct.tolist() == [True, True]
    assert paired.b_correct.tolist() == [True, False]
    assert len(paired) == 2


def test_a_negative_flip_was_right_before_and_is_wrong_after() -> None:
    before = outcomes([1, 2, 3, 4], [True, True, False, False])
    after = outcomes([4, 3, 2, 1], [False, True, False, True])
    negative, positive = flips(pair(before, after))
    assert negative.tolist() == [2]
    assert positive.tolist() == [3]


def test_graded_values_are_paired_only_where_both_versions_have_them() -> None:
    before = outcomes([1, 2], [True, True], graded=[-1.0, -2.0])
    after = outcomes([2, 1], [True, True], graded=[-3.0, -4.0])
    paired = pair(before, after)
    assert paired.a_graded is not None
    assert paired.b_graded is not None
    assert (paired.b_graded - paired.a_graded).tolist() == [-3.0, -1.0]
    assert pair(before, outcomes([1], [True])).a_graded is None


def test_accuracy_is_the_share_answered_rightly_and_none_without_examples() -> None:
    assert accuracy(outcomes([1, 2, 3, 4], [True, False, True, True])) == 0.75
    assert accuracy(outcomes([], [])) is None


def test_an_earlier_score_is_carried_to_a_grown_eval_set_by_its_paired_difference() -> None:
    # On examples 1 and 2 both answered, the later version gained 1/2; it has 2/4 of its own four right.
    old = outcomes([1, 2], [True, False])
    grown = outcomes([1, 2, 3, 4], [True, True, False, False])
    assert carried_scores([None, old, grown]) == [None, 0.0, 0.5]
    assert carried_scores([old, grown, None]) == [0.0, 0.5, None]
    assert carried_scores([old, old]) == [0.5, 0.5]


def test_nothing_is_carried_where_nothing_is_shared() -> None:
    old = outcomes([1, 2], [True, False])
    assert carried_scores([None, None]) == [None, None]
    assert carried_scores([old, outcomes([8], [True])]) == [None, 1.0]
    assert carried_scores([old, outcomes([], [])]) == [None, None]


def test_the_score_of_graded_outcomes_is_their_mean_and_is_carried_like_an_accuracy() -> None:
    old = outcomes([1, 2], [True, False], graded=[-1.0, -3.0])
    grown = outcomes([1, 2, 3], [True, False, False], graded=[-0.5, -2.5, -6.0])
    assert mean_score(old) == -2.0
    # On the shared examples the later version gained 1/2; its own mean is -3.
    assert carried_scores([old, grown]) == [-3.5, -3.0]


def test_the_change_of_graded_scores_comes_with_bounds_and_other_changes_do_not() -> None:
    before = outcomes([1, 2, 3], [True] * 3, graded=[-1.0, -2.0, -3.0])
    after = outcomes([1, 2, 3], [True] * 3, graded=[-1.5, -2.5, -3.5])
    assert graded_interval(pair(before, after), confidence=0.95) == (-0.5, -0.5)
    assert graded_interval(pair(outcomes([1], [True]), after), confidence=0.95) is None
    alone = pair(outcomes([1], [True], graded=[-1.0]), after)
    assert graded_interval(alone, confidence=0.95) == (-math.inf, math.inf)
    assert graded_interval(None, confidence=0.95) is None
