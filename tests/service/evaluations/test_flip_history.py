"""How often examples flip along a lineage: hand-worked counts, and the same by walking every example."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.evaluations.flip_history import FlipHistory, ScoredSet, flip_history


def scored(version: int, answers: dict[int, int]) -> ScoredSet:
    """One version's row: right (1) or wrong (0) by example id."""
    bits = np.packbits(np.array(list(answers.values()), dtype=np.uint8))
    return ScoredSet(np.array(list(answers), dtype=np.int64), [version], [bits.tobytes()])


def test_flips_are_counted_against_the_version_before() -> None:
    # example   7: right wrong right wrong; 8: wrong wrong right right; 9: right right right right
    history = flip_history(
        [0, 2, 5, 6],
        [
            scored(0, {7: 1, 8: 0, 9: 1}),
            scored(2, {7: 0, 8: 0, 9: 1}),
            scored(5, {7: 1, 8: 1, 9: 1}),
            scored(6, {7: 0, 8: 1, 9: 1}),
        ],
    )
    assert history.example_ids.tolist() == [7, 8, 9]
    assert history.negative.tolist() == [2, 0, 0]
    assert history.positive.tolist() == [1, 1, 0]
    assert history.compared.tolist() == [3, 3, 3]
    assert history.turned_at(0, sign=-1) == [2, 6]
    assert history.turned_at(0, sign=1) == history.turned_at(1, sign=1) == [5]


def test_a_version_that_was_not_scored_is_passed_over() -> None:
    history = flip_history([1, 2, 3], [scored(1, {4: 1}), scored(3, {4: 0})])
    assert history.turned_at(0, sign=-1) == [3]
    assert history.compared.tolist() == [1]


def test_an_example_that_joined_later_is_compared_from_its_second_answer_on() -> None:
    history = flip_history([1, 2, 3], [scored(1, {4: 1}), scored(2, {4: 1, 5: 1}), scored(3, {4: 1, 5: 0})])
    assert history.compared.tolist() == [2, 1]
    assert history.negative.tolist() == [0, 1]


def test_an_example_that_was_scored_in_two_eval_sets_counts_once() -> None:
    history = flip_history([1, 2], [scored(1, {4: 1}), scored(2, {4: 0}), scored(2, {4: 0, 5: 1})])
    assert history.negative.tolist() == [1, 0]
    assert history.compared.tolist() == [1, 0]


def test_versions_that_were_scored_on_the_same_set_may_come_together() -> None:
    ids = np.array([3, 5], dtype=np.int64)
    both = ScoredSet(ids, [2, 1], [bytes([0b0100_0000]), bytes([0b1000_0000])])
    assert flip_history([1, 2], [both]).negative.tolist() == [1, 0]
    assert flip_history([1, 2], [both]).positive.tolist() == [0, 1]


def test_without_scores_there_is_no_history() -> None:
    history = flip_history([0, 1], [])
    assert history.example_ids.size == history.negative.size == history.compared.size == 0
    assert flip_history([0], [scored(0, {4: 1})]).compared.tolist() == [0]


@given(st.lists(st.lists(st.sampled_from([None, 0, 1]), min_size=9, max_size=9), min_size=1, max_size=6))
def test_the_counts_are_those_of_a_walk_along_every_example(table: list[list[int | None]]) -> None:
    rows = [
        scored(version, {example: answer for example, answer in enumerate(row) if answer is not None})
        for version, row in enumerate(table)
    ]
    history = flip_history(range(len(table)), rows)
    for column, example in enumerate(history.example_ids.tolist()):
        assert walked(table, example) == found(history, column)


def walked(table: list[list[int | None]], example: int) -> tuple[list[int], list[int], int]:
    negative, positive, compared, before = [], [], 0, None
    for version, row in enumerate(table):
        answer = row[example]
        if answer is None:
            continue
        if before is not None:
            compared += 1
            if answer != before:
                (positive if answer else negative).append(version)
        before = answer
    return negative, positive, compared


def found(history: FlipHistory, column: int) -> tuple[list[int], list[int], int]:
    assert len(history.turned_at(column, sign=-1)) == history.negative[column]
    assert len(history.turned_at(column, sign=1)) == history.positive[column]
    return (
        history.turned_at(column, sign=-1),
        history.turned_at(column, sign=1),
        int(history.compared[column]),
    )
