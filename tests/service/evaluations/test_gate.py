from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.evaluations.gate import (
    Comparison,
    GatePolicy,
    OnInconclusive,
    Promotion,
    Verdict,
    decide,
    eval_size_warnings,
    from_json,
    graded_size_warnings,
    to_json,
    what_happens,
)
from service.evaluations.significance import Decision

POLICY = GatePolicy()
KEPT = Comparison("refunds", "old", 1000, 0.9, 0.9, negative_flips=0, positive_flips=0)
LOST = replace(KEPT, task="returns", candidate_score=0.8, negative_flips=105, positive_flips=5)
UNSURE = replace(KEPT, task="billing", size=100, candidate_score=0.88, negative_flips=4, positive_flips=2)
NEW = Comparison("shipping", "new", 200, 0.85, 0.0, negative_flips=0, positive_flips=170)


def test_a_candidate_that_kept_everything_passes() -> None:
    verdict = decide(POLICY, [KEPT, NEW])
    assert verdict.decision == "pass"
    assert {(reason.task, reason.rule) for reason in verdict.reasons} == {
        ("refunds", "max_regression"),
        ("shipping", "new_task_regression"),
    }


def test_a_lost_task_fails_with_the_numbers() -> None:
    (reason,) = decide(POLICY, [LOST]).reasons
    assert (reason.rule, reason.decision) == ("max_regression", "fail")
    assert reason.observed == pytest.approx(-0.1)  # (5 − 105) / 1000
    assert reason.bound == -0.02
    assert "of 1000 examples 105 turned wrong and 5 turned right: -10.00 %" in reason.detail
    assert "more than the tolerated 2 % was lost" in reason.detail


def test_too_few_examples_are_inconclusive_and_say_how_many_would_decide() -> None:
    (reason,) = decide(POLICY, [replace(KEPT, size=100)]).reasons
    assert reason.decision == "inconclusive"
    assert "about 149 eval examples would decide" in reason.detail


def test_a_regression_of_exactly_the_margin_says_that_no_size_decides() -> None:
    (reason,) = decide(POLICY, [UNSURE]).reasons  # (2 − 4) / 100 = −0.02
    assert "no eval set of up to 1000000 examples would decide" in reason.detail


def test_fail_beats_inconclusive_beats_pass_and_the_gravest_reason_comes_first() -> None:
    assert decide(POLICY, [KEPT, UNSURE]).decision == "inconclusive"
    verdict = decide(POLICY, [KEPT, UNSURE, LOST])
    assert [reason.decision for reason in verdict.reasons] == ["fail", "inconclusive", "pass"]
    assert verdict.decision == "fail"


def test_a_task_that_the_champion_has_no_score_on_cannot_regress() -> None:
    first = replace(NEW, champion_score=None, positive_flips=0, size=0)
    assert decide(POLICY, [first]).decision == "pass"
    old = replace(KEPT, champion_score=None, negative_flips=0)
    assert decide(POLICY, [old]).decision == "pass"


def test_a_candidate_without_a_score_where_the_champion_has_one_fails() -> None:
    assert decide(POLICY, [replace(KEPT, candidate_score=None)]).decision == "fail"


def test_an_old_task_without_eval_examples_is_not_taken_for_kept() -> None:
    emptied = replace(KEPT, size=0, candidate_score=None, champion_score=None)
    assert decide(POLICY, [emptied]).decision == "inconclusive"


def test_a_new_task_must_reach_the_smallest_score_where_one_is_set() -> None:
    demanding = GatePolicy(min_new_score=0.9)
    verdict = decide(demanding, [NEW])
    assert (verdict.decision, verdict.reasons[0].rule) == ("fail", "min_new_score")
    assert (verdict.reasons[0].observed, verdict.reasons[0].bound) == (0.85, 0.9)
    assert decide(demanding, [replace(NEW, candidate_score=0.9)]).decision == "pass"
    assert decide(demanding, [KEPT]).decision == "pass"  # 0.9 stands; old tasks are not asked


def test_a_new_task_fails_only_when_certainly_worse_than_the_champion() -> None:
    somewhat = replace(NEW, candidate_score=0.48, champion_score=0.5, negative_flips=10, positive_flips=6)
    assert decide(POLICY, [somewhat]).decision == "pass"
    clearly = replace(somewhat, negative_flips=40, positive_flips=2)
    verdict = decide(POLICY, [clearly])
    assert (verdict.decision, verdict.reasons[0].rule) == ("fail", "new_task_regression")


def test_a_relearnt_task_is_held_to_the_old_bound_and_to_the_new_score() -> None:
    again = replace(LOST, role="relearnt")
    reasons = decide(GatePolicy(min_new_score=0.85), [again]).reasons
    assert {(reason.rule, reason.decision) for reason in reasons} == {
        ("max_regression", "fail"),
        ("min_new_score", "fail"),
    }


@pytest.mark.parametrize(
    ("interval", "role", "decision"),
    [
        ((-0.01, 0.03), "old", "pass"),
        ((-0.05, 0.03), "old", "inconclusive"),
        ((-0.05, -0.03), "old", "fail"),
        ((-0.05, 0.03), "new", "pass"),
        ((-0.05, -0.01), "new", "fail"),
    ],
)
def test_graded_scores_are_judged_by_their_bootstrap_interval(
    interval: tuple[float, float], role: str, decision: Decision
) -> None:
    graded = Comparison("chat", role, 50, -1.02, -1.0, 0, 0, graded_interval=interval)
    (reason,) = decide(POLICY, [graded]).reasons
    assert reason.decision == decision
    assert reason.observed == pytest.approx(-0.02)


def test_one_graded_example_decides_nothing_and_says_why() -> None:
    alone = Comparison("chat", "old", 1, -1.0, -1.5, 0, 0, graded_interval=(-math.inf, math.inf))
    (reason,) = decide(POLICY, [alone]).reasons
    assert reason.decision == "inconclusive"
    assert "changed by +0.5 on 1 example; one example has no spread" in reason.detail
    assert "inf" not in reason.detail


def test_an_undecided_graded_change_says_what_size_would_decide() -> None:
    half = 2.131847 * 0.1 / 5**0.5  # a standard deviation of 0.1: 70 examples, worked in test_significance
    graded = Comparison("chat", "old", 5, -1.0, -1.0, 0, 0, graded_interval=(-half, half))
    (reason,) = decide(POLICY, [graded]).reasons
    assert reason.decision == "inconclusive"
    assert "between -0.09534 and +0.09534 by the bootstrap or Student's t" in reason.detail
    assert "about 70 eval examples would decide at this spread, in the candidate's favour" in reason.detail
    lost = replace(graded, candidate_score=-1.04, graded_interval=(-0.04 - half, -0.04 + half))
    assert (
        "about 70 eval examples would decide at this spread, to reject"
        in decide(POLICY, [lost]).reasons[0].detail
    )


def test_a_decided_graded_change_asks_for_no_more_examples() -> None:
    kept = Comparison("chat", "old", 50, -1.0, -1.0, 0, 0, graded_interval=(-0.01, 0.01))
    assert "would decide" not in decide(POLICY, [kept]).reasons[0].detail


def test_with_nothing_to_compare_the_gate_passes() -> None:
    assert decide(POLICY, []) == Verdict("pass", ())


@given(st.lists(st.sampled_from([KEPT, LOST, UNSURE, NEW]), max_size=4), st.permutations(range(4)))
@settings(deadline=None, max_examples=40)
def test_the_decision_does_not_depend_on_the_order_of_tasks(
    chosen: list[Comparison], order: list[int]
) -> None:
    moved = [chosen[i] for i in order if i < len(chosen)]
    assert decide(POLICY, moved).decision == decide(POLICY, chosen).decision


@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 100))
@settings(deadline=None, max_examples=40)
def test_one_more_lost_example_never_helps(negative: int, positive: int, spare: int) -> None:
    before = replace(KEPT, size=negative + positive + spare, negative_flips=negative, positive_flips=positive)
    after = replace(before, negative_flips=negative + 1)
    severity = {"pass": 0, "inconclusive": 1, "fail": 2}
    assert severity[decide(POLICY, [after]).decision] >= severity[decide(POLICY, [before]).decision]


def test_a_verdict_survives_json() -> None:
    verdict = decide(
        GatePolicy(min_new_score=0.5), [KEPT, LOST, UNSURE, NEW, replace(NEW, champion_score=None)]
    )
    assert from_json(json.loads(json.dumps(to_json(verdict)))) == verdict
    assert set(to_json(verdict)["reasons"][0]) >= {"task", "rule", "observed", "bound", "detail"}


@pytest.mark.parametrize(
    ("promotion", "decision", "on_inconclusive", "step"),
    [
        ("gate", "pass", "hold", "promote"),
        ("gate", "fail", "promote", "reject"),
        ("gate", "inconclusive", "hold", "hold"),
        ("gate", "inconclusive", "promote", "promote"),
        ("gate", "inconclusive", "reject", "reject"),
        ("manual", "pass", "promote", "hold"),
        ("manual", "fail", "promote", "hold"),
        ("always", "fail", "reject", "promote"),
        ("always", "inconclusive", "hold", "promote"),
    ],
)
def test_the_update_says_whether_the_gate_is_followed(
    promotion: Promotion, decision: Decision, on_inconclusive: OnInconclusive, step: str
) -> None:
    assert what_happens(Verdict(decision, ()), promotion, on_inconclusive) == step
    assert what_happens(Verdict(decision, ()), promotion, on_inconclusive, champion_moved=True) == "hold"


def test_eval_sets_too_small_to_decide_are_named_at_the_request() -> None:
    (warning,) = eval_size_warnings(POLICY, {"refunds": 149, "returns": 148})
    assert "'returns' has 148 eval examples" in warning
    assert "149 or more" in warning


def test_graded_eval_sets_too_small_to_decide_are_named_at_the_request() -> None:
    alone, few = graded_size_warnings(POLICY, {"chat": 1, "files": 5, "maths": 30})
    assert alone.startswith("task 'chat' has 1 eval example; graded scores have bounds from 2 examples on")
    assert "'files' has 5 eval examples" in few
    assert "standard deviation below 0.021 at 95 % confidence" in few  # 0.02·√5 / 2.1318
    (zero,) = graded_size_warnings(GatePolicy(max_regression=0.0), {"chat": 100})
    assert "only a certain gain passes" in zero


def test_a_policy_that_tolerates_nothing_is_told_that_only_a_gain_passes() -> None:
    (warning,) = eval_size_warnings(GatePolicy(max_regression=0.0), {"refunds": 10_000})
    assert "only a certain gain passes" in warning
    gained = replace(KEPT, positive_flips=40)
    assert decide(GatePolicy(max_regression=0.0), [gained]).decision == "pass"
    assert decide(GatePolicy(max_regression=0.0), [KEPT]).decision == "inconclusive"


@pytest.mark.parametrize(
    "values",
    [
        {"max_regression": -0.01},
        {"max_regression": 2},
        {"confidence": 95},
        {"confidence": 0.5},
        {"min_new_score": float("nan")},
        {"on_inconclusive": "ask"},
    ],
)
def test_a_policy_outside_its_ranges_is_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=name):
        GatePolicy(**values)
