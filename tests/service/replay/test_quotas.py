"""The replay buffer's definition: uniform, whatever the order of arrival, exact under any quota."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from service.replay.quotas import (
    PLAIN_WEIGHT,
    Candidate,
    flip_weights,
    herding_priority,
    priority,
    select,
    stratum,
    water_fill,
)

SIZES = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(0, 30), max_size=8)
CAPACITY = st.integers(0, 120)


def content(number: int) -> bytes:
    return number.to_bytes(32, "big")


@settings(deadline=None)
@given(CAPACITY, SIZES)
def test_quotas_fill_the_capacity_and_never_exceed_a_stratum(capacity: int, sizes: dict[str, int]) -> None:
    quotas = water_fill(capacity, sizes)
    assert quotas.keys() == sizes.keys()
    assert sum(quotas.values()) == min(capacity, sum(sizes.values()))
    assert all(0 <= quotas[name] <= sizes[name] for name in sizes)


@settings(deadline=None)
@given(CAPACITY, SIZES)
def test_quotas_are_as_equal_as_sizes_allow(capacity: int, sizes: dict[str, int]) -> None:
    quotas = water_fill(capacity, sizes)
    for name, quota in quotas.items():
        if quota < sizes[name]:  # has rows left over, so nobody may hold two more
            assert all(other <= quota + 1 for other in quotas.values())


@settings(deadline=None)
@given(CAPACITY, SIZES)
def test_more_capacity_never_lowers_a_quota(capacity: int, sizes: dict[str, int]) -> None:
    less, more = water_fill(capacity, sizes), water_fill(capacity + 1, sizes)
    assert all(less[name] <= more[name] for name in sizes)


@settings(deadline=None)
@given(CAPACITY, SIZES, st.text("abcdefg", min_size=1, max_size=2))
def test_a_growing_stratum_never_raises_the_quota_of_another(
    capacity: int, sizes: dict[str, int], grown: str
) -> None:
    # so an example that has left the buffer is not wanted back because others arrived
    before = water_fill(capacity, sizes)
    after = water_fill(capacity, {**sizes, grown: sizes.get(grown, 0) + 1})
    assert all(after[name] <= before[name] for name in sizes if name != grown)


@settings(deadline=None)
@given(CAPACITY, SIZES)
def test_quotas_do_not_depend_on_the_order_of_strata(capacity: int, sizes: dict[str, int]) -> None:
    assert water_fill(capacity, dict(reversed(sizes.items()))) == water_fill(capacity, sizes)


def test_small_strata_give_their_share_away() -> None:
    # 100 slots over three: a keeps its 10, b and c share the other 90
    assert water_fill(100, {"a": 10, "b": 200, "c": 200}) == {"a": 10, "b": 45, "c": 45}


def test_slots_that_cannot_be_shared_out_go_to_the_first_by_name() -> None:
    assert water_fill(8, {"c": 9, "a": 9, "b": 9}) == {"a": 3, "b": 3, "c": 2}
    assert water_fill(2, {"c": 9, "a": 9, "b": 9}) == {"a": 1, "b": 1, "c": 0}
    assert water_fill(3, {}) == {}


def test_negative_capacity_or_size_is_refused() -> None:
    for capacity, sizes in ((-1, {"a": 1}), (1, {"a": -1})):
        with pytest.raises(ValueError, match="must not be negative"):
            water_fill(capacity, sizes)


def test_priorities_do_not_change_between_releases() -> None:
    # stored rows carry them: another value here would reshuffle every buffer in existence
    assert priority(0, "refunds", content(1)) == 0.25056000848757287
    assert priority(-(2**63), "refunds", content(1)) != priority(2**63 - 1, "refunds", content(1))


def test_priorities_are_uniform_and_lie_inside_the_unit_interval() -> None:
    drawn = [priority(42, "refunds", content(number)) for number in range(5000)]
    assert 0.0 < min(drawn) < max(drawn) < 1.0
    assert len(set(drawn)) == 5000
    assert kstest(drawn, "uniform").pvalue > 0.001


def test_priority_depends_on_seed_task_and_content_and_on_nothing_else() -> None:
    base = priority(1, "refunds", content(1))
    assert priority(1, "refunds", content(1)) == base
    others = [
        priority(2, "refunds", content(1)),
        priority(1, "returns", content(1)),
        priority(1, "refunds", content(2)),
    ]
    assert base not in others
    assert priority(1, "ab", b"c") != priority(1, "a", b"bc")


def test_every_subset_is_equally_likely_to_be_the_buffer() -> None:
    # 3 of 6 examples: 20 subsets, one draw per buffer seed
    drawn: Counter[tuple[int, ...]] = Counter()
    for seed in range(4000):
        offered = [Candidate("all", priority(seed, "t", content(i)), i) for i in range(6)]
        drawn[tuple(sorted(kept.example_id for kept in select(offered, 3)))] += 1
    counts = [drawn[subset] for subset in combinations(range(6), 3)]
    assert sum(counts) == 4000
    assert chisquare(counts).pvalue > 0.001


def test_a_weighted_sample_draws_the_next_example_in_proportion_to_its_weight() -> None:
    weights = {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}
    drawn: Counter[tuple[int, int]] = Counter()
    for seed in range(6000):
        ranked = sorted(weights, key=lambda i: priority(seed, "t", content(i), weights[i]))
        drawn[ranked[0], ranked[1]] += 1
    # first i with w_i / 10, then j among the others with w_j / (10 − w_i)
    expected = {
        (i, j): 6000 * weights[i] / 10 * weights[j] / (10 - weights[i])
        for i in weights
        for j in weights
        if i != j
    }
    assert chisquare([drawn[pair] for pair in expected], list(expected.values())).pvalue > 0.001


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e12))
def test_a_weighted_priority_stays_inside_the_unit_interval(number: int, weight: float) -> None:
    assert 0.0 < priority(7, "t", content(number), weight) < 1.0


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 1e6), st.floats(1, 1e6))
def test_a_heavier_example_comes_no_later(number: int, one: float, other: float) -> None:
    light, heavy = sorted((one, other))
    assert priority(7, "t", content(number), heavy) <= priority(7, "t", content(number), light)


def test_a_weighted_priority_keeps_its_digits_where_it_is_tiny() -> None:
    # 1 − (1 − u)^(1/w) ≈ −ln(1 − u)/w, which a plain power would round to 0
    uniform = priority(7, "t", content(1))
    assert priority(7, "t", content(1), 1e20) == pytest.approx(-math.log1p(-uniform) / 1e20, rel=1e-12)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_is_not_positive_and_finite_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        priority(1, "t", b"x", weight)


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        stratum=st.sampled_from("abc"),
        priority=st.integers(1, 99).map(lambda hundredths: hundredths / 100),
        example_id=st.integers(0, 60),
    ),
    max_size=50,
)


@settings(deadline=None)
@given(CANDIDATES, CAPACITY, st.randoms(use_true_random=False))
def test_the_buffer_does_not_depend_on_the_order_of_arrival(
    offered: list[Candidate], capacity: int, shuffle: object
) -> None:
    moved = list(offered)
    shuffle.shuffle(moved)
    assert select(moved, capacity) == select(offered, capacity)


@settings(deadline=None)
@given(CANDIDATES, CAPACITY)
def test_a_smaller_buffer_is_a_part_of_the_larger_one(offered: list[Candidate], capacity: int) -> None:
    assert set(select(offered, capacity)) <= set(select(offered, capacity + 7))


@settings(deadline=None)
@given(CANDIDATES, CAPACITY)
def test_no_example_is_held_twice(offered: list[Candidate], capacity: int) -> None:
    held = [kept.example_id for kept in select(offered, capacity)]
    assert len(set(held)) == len(held) == min(capacity, len({c.example_id for c in offered}))


def test_the_lowest_priorities_of_each_stratum_are_held() -> None:
    offered = [Candidate("a", 0.3, 1), Candidate("a", 0.1, 2), Candidate("a", 0.2, 3), Candidate("b", 0.9, 4)]
    assert [kept.example_id for kept in select(offered, 3)] == [2, 3, 4]


def test_when_an_example_is_erased_the_next_in_rank_steps_in() -> None:
    offered = [Candidate("a", place / 10, place) for place in range(1, 6)]
    assert [kept.example_id for kept in select(offered, 2)] == [1, 2]
    assert [kept.example_id for kept in select([c for c in offered if c.example_id != 1], 2)] == [2, 3]


def test_a_relearnt_example_counts_once_at_its_lowest_priority() -> None:
    offered = [Candidate("a", 0.5, 1), Candidate("a", 0.2, 1), Candidate("a", 0.3, 2)]
    assert select(offered, 2) == [Candidate("a", 0.2, 1), Candidate("a", 0.3, 2)]


def test_policies_differ_in_their_strata() -> None:
    assert stratum("reservoir", "t1", "spam") == stratum("reservoir", "t2", None)
    for policy in ("balanced", "weighted", "herding"):
        pairs = [("t1", "spam"), ("t1", "ham"), ("t2", "spam"), ("t1", None), ("t1", "")]
        assert len({stratum(policy, task, label) for task, label in pairs}) == len(pairs)


def test_a_stratum_that_could_be_mistaken_for_another_is_refused() -> None:
    with pytest.raises(ValueError, match="slash"):
        stratum("balanced", "a/b", "c")
    with pytest.raises(ValueError, match="unknown replay policy"):
        stratum("newest", "a", "b")


def test_herding_keeps_the_order_of_selection() -> None:
    ranks = [herding_priority(rank, 9) for rank in range(1, 10)]
    assert ranks == sorted(ranks)
    assert (ranks[0], ranks[-1]) == (0.1, 0.9)
    with pytest.raises(ValueError, match="outside 1 to 9"):
        herding_priority(10, 9)


WEIGHTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(1, 4000), max_size=8)


def handed_out(capacity: int, sizes: dict[str, int], weights: dict[str, int]) -> dict[str, int]:
    """The rule of weighted quotas, slot by slot."""
    quotas = dict.fromkeys(sorted(sizes), 0)
    for _ in range(min(capacity, sum(sizes.values()))):
        open_ = [name for name in quotas if quotas[name] < sizes[name]]
        first = min(open_, key=lambda name: Fraction(quotas[name] + 1, weights.get(name, PLAIN_WEIGHT)))
        quotas[first] += 1
    return quotas


@settings(deadline=None)
@given(CAPACITY, SIZES, WEIGHTS)
def test_weighted_slots_go_one_by_one_to_whoever_has_least_for_its_weight(
    capacity: int, sizes: dict[str, int], weights: dict[str, int]
) -> None:
    assert water_fill(capacity, sizes, weights) == handed_out(capacity, sizes, weights)


@settings(deadline=None)
@given(CAPACITY, SIZES, st.integers(1, 4000))
def test_equal_weights_are_none(capacity: int, sizes: dict[str, int], weight: int) -> None:
    assert water_fill(capacity, sizes, dict.fromkeys(sizes, weight)) == water_fill(capacity, sizes)


def test_three_times_the_weight_is_three_times_the_share() -> None:
    assert water_fill(80, {"a": 99, "b": 99}, {"a": 3000, "b": 1000}) == {"a": 60, "b": 20}
    assert water_fill(80, {"a": 30, "b": 99}, {"a": 3000, "b": 1000}) == {"a": 30, "b": 50}
    with pytest.raises(ValueError, match="weights must be 1 or more"):
        water_fill(1, {"a": 1}, {"a": 0})


def test_flip_weights_share_half_equally_and_half_by_the_negative_flip_rate() -> None:
    # rates 0.3, 0.1, 0 and unknown: their mean over four strata is 0.1
    weights = flip_weights(["a", "b", "c", "d"], {"a": (30, 100), "b": (5, 50), "c": (0, 80), "gone": (9, 9)})
    assert weights == {"a": 4000, "b": 2000, "c": 1000, "d": 1000}
    assert water_fill(80, dict.fromkeys("abcd", 100), weights) == {"a": 40, "b": 20, "c": 10, "d": 10}


def test_the_length_of_a_lineage_does_not_change_flip_weights() -> None:
    short = flip_weights("ab", {"a": (3, 10), "b": (1, 10)})
    assert flip_weights("ab", {"a": (30, 1000), "b": (10, 1000)}) == short


def test_without_a_negative_flip_all_weigh_the_same() -> None:
    assert flip_weights("ab", {}) == flip_weights("ab", {"a": (0, 0), "b": (0, 7)}) == {"a": 1000, "b": 1000}
    assert flip_weights([], {"a": (1, 1)}) == {}


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text("abc", max_size=2),
        st.integers(1, 50).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    )
)
def test_no_stratum_falls_below_half_of_an_equal_share(flips: dict[str, tuple[int, int]]) -> None:
    capacity = 60 * len(flips)
    boosted = water_fill(capacity, dict.fromkeys(flips, 10_000), flip_weights(flips, flips))
    assert all(quota >= 29 for quota in boosted.values())  # 30 and what rounding takes
