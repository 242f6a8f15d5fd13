"""What a dial says of its points: pure, hand-worked."""

import numpy as np
import pytest

from service.dials.points import (
    DialColumn,
    Scored,
    change_interval,
    decision_on_old_tasks,
    point_document,
    recommended_beta,
    score_interval,
)
from service.evaluations.gate import GatePolicy
from service.evaluations.outcomes import Outcomes
from service.evaluations.significance import clopper_pearson

OLD = DialColumn("t_old", "old", "old", 0, guards=True)
NEW = DialColumn("t_new", "new", "new", 1, guards=False)
POLICY = GatePolicy(max_regression=0.1, confidence=0.95)
SIZE = 200


def scored(right: int, *, change: tuple[float, float] | None = None, score: float | None = None) -> Scored:
    """The first `right` of the examples are right."""
    correct = np.packbits(np.arange(SIZE) < right).tobytes()
    accuracy = right / SIZE if score is None else score
    return Scored(SIZE, accuracy, correct, clopper_pearson(right, SIZE, 0.95), change)


def documents(*rights: tuple[float, int, int]) -> list[dict[str, object]]:
    """The points of a dial, from (β, right on the old task, right on the new one)."""
    points = {beta: {"t_old": scored(old), "t_new": scored(new)} for beta, old, new in rights}
    _, old, new = rights[-1]
    matrix = [[None, None], [0.9, 0.1], [old / SIZE, new / SIZE]]
    return [
        point_document(
            beta,
            points,
            columns=[OLD, NEW],
            matrix=matrix,
            learnt_at=[1, 2],
            policy=POLICY,
            logarithmic=False,
        )
        for beta, *_ in rights
    ]  # type: ignore[misc]  # read as plain dictionaries here


def test_a_points_measures_are_those_of_a_report_with_the_point_in_the_versions_place() -> None:
    first, middle, last = documents((0.0, 180, 20), (0.5, 160, 120), (1.0, 90, 180))
    assert middle["average_accuracy"] == pytest.approx((0.8 + 0.6) / 2)
    assert middle["stability"] == middle["worst_retention"] == pytest.approx(0.8 / 0.9)
    assert middle["plasticity"] == pytest.approx(0.6)
    assert middle["negative_flip_rate"] == pytest.approx(20 / SIZE)
    assert middle["forgetting"] == pytest.approx(0.1)
    assert middle["backward_transfer"] == pytest.approx(-0.1)
    assert (first["source"], middle["source"], last["source"]) == ("recorded", "computed", "recorded")
    assert middle["tasks"][1]["flips"] == {"negative": 0, "positive": 100}  # type: ignore[index]
    assert middle["tasks"][0]["delta"] == pytest.approx(-0.1)  # type: ignore[index]


def test_the_recommendation_stops_at_the_first_point_that_does_not_pass() -> None:
    rights = [(0.0, 180, 20), (0.25, 180, 40), (0.5, 178, 60), (0.75, 140, 80), (1.0, 180, 90)]
    found = documents(*rights)
    assert [document["old_tasks"] for document in found] == ["pass", "pass", "pass", "fail", "pass"]
    assert recommended_beta(found) == 0.5  # type: ignore[arg-type]  # as above
    assert recommended_beta(found[:1] + found[3:]) is None  # type: ignore[arg-type]
    assert recommended_beta(found[:3]) == 0.5  # type: ignore[arg-type]


def test_a_task_that_the_gate_did_not_hold_the_update_to_decides_nothing() -> None:
    later = DialColumn("t_old", "later", "old", 0, guards=False)
    here, parent = {"t_old": scored(0)}, {"t_old": scored(200)}
    assert decision_on_old_tasks([later, NEW], here, parent, policy=POLICY) is None
    assert decision_on_old_tasks([OLD, NEW], here, parent, policy=POLICY) == "fail"


def test_a_parent_without_a_head_has_no_scores_and_leaves_nothing_to_lose() -> None:
    points = {0.0: {}, 1.0: {"t_new": scored(100)}}
    column = DialColumn("t_new", "new", "new", 0, guards=False)
    document = point_document(
        0.0, points, columns=[column], matrix=[[None], [0.5]], learnt_at=[1], policy=POLICY, logarithmic=False
    )
    assert document["tasks"][0]["score"] is None
    assert document["tasks"][0]["flips"] is None
    assert (document["old_tasks"], document["average_accuracy"]) == (None, None)


def test_where_the_versions_own_score_stands_on_other_examples_a_point_is_carried_there() -> None:
    points = {0.0: {"t_old": scored(180)}, 0.5: {"t_old": scored(170)}, 1.0: {"t_old": scored(160)}}
    document = point_document(
        0.5,
        points,
        columns=[OLD],
        matrix=[[None], [0.9], [0.7]],
        learnt_at=[1],
        policy=POLICY,
        logarithmic=False,
    )
    assert document["average_accuracy"] == pytest.approx(0.7 + 0.05)


def test_graded_scores_have_bootstrap_bounds_and_are_judged_by_their_change() -> None:
    rng = np.random.default_rng(0)
    ids, right = np.arange(50), np.ones(50, dtype=bool)

    def outcomes(graded: np.ndarray) -> Outcomes:
        return Outcomes(ids, right, np.full(50, -1), np.ones(50), graded)

    single = Outcomes(ids[:1], right[:1], np.full(1, -1), np.ones(1), np.array([-1.0]))
    assert score_interval(single, confidence=0.95) == (-np.inf, np.inf)
    before = rng.normal(-1.0, 0.3, 50)
    after = before - 0.05
    low, high = score_interval(outcomes(after), confidence=0.95)
    assert low < after.mean() < high
    change = change_interval(outcomes(before), outcomes(after), confidence=0.95)
    assert change == pytest.approx((-0.05, -0.05), abs=1e-6)
    assert change_interval(None, outcomes(after), confidence=0.95) is None
    here = {"t_old": scored(200, change=change, score=-1.05)}
    parent = {"t_old": scored(200, change=(0.0, 0.0), score=-1.0)}
    assert decision_on_old_tasks([OLD], here, parent, policy=POLICY) == "pass"
    alone = {"t_old": scored(200, change=(-np.inf, np.inf), score=-0.5)}
    assert decision_on_old_tasks([OLD], alone, parent, policy=POLICY) == "inconclusive"
    strict = GatePolicy(max_regression=0.01)
    assert decision_on_old_tasks([OLD], here, parent, policy=strict) == "fail"


def test_a_score_that_nothing_bounds_is_shown_without_bounds() -> None:
    unbounded = Scored(1, -1.0, b"\x80", (-np.inf, np.inf), (-np.inf, np.inf))
    points = {0.0: {"t_old": unbounded}, 1.0: {"t_old": unbounded}}
    document = point_document(
        1.0, points, columns=[OLD], matrix=[[-1.0], [-1.0]], learnt_at=[0], policy=POLICY, logarithmic=True
    )
    assert (document["tasks"][0]["score"], document["tasks"][0]["interval"]) == (-1.0, None)
    assert document["old_tasks"] == "inconclusive"
