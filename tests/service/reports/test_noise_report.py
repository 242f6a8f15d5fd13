"""The noise floor in a report, from outcomes that are known example by example."""

from typing import Any

import numpy as np
import pytest

from service.evaluations.metrics import summarise
from service.evaluations.outcomes import Outcomes
from service.reports.forgetting import PairedOutcome, TaskEvidence, update_summary
from service.reports.noise import TaskAnswers, UpdateNoise, update_noise


def answered(right: str, *, first: int = 0, graded: list[float] | None = None) -> Outcomes:
    """Outcomes of examples with rising ids: `1` is right."""
    ids = np.arange(first, first + len(right))
    return Outcomes(
        ids, np.array([mark == "1" for mark in right]), np.zeros(len(right)), np.ones(len(right)),
        None if graded is None else np.array(graded),
    )  # fmt: skip


PARENT, OWN = answered("1111100000"), answered("1111010000")  # 5 and 5 of 10 right, one flip each way
SECOND, THIRD = answered("1110000000"), answered("1111111000")  # 3 and 7

OLD = TaskEvidence("old", "old", 10, 0.5, 0.5, 0.5, 0.5, PairedOutcome(10, 1, 1), lineage_score=0.5)
NEW = TaskEvidence("new", "new", 10, 0.5, None, 0.5, None, lineage_score=0.5)
MATRIX = [[None, None], [0.5, None], [0.5, 0.5]]
LEARNT_AT = [1, 2]


def noise(
    *, old: TaskAnswers, new: TaskAnswers, others: tuple[int, ...] = (8, 9), **told: Any
) -> UpdateNoise:
    return update_noise(
        seed=7, evidence=[OLD, NEW], answers=[old, new], matrix=MATRIX, learnt_at=LEARNT_AT,
        confidence=0.95, logarithmic=False, told={"seeds": list(others), **told},
    )  # fmt: skip


BOTH = {
    "old": TaskAnswers(OWN, PARENT, {8: SECOND, 9: THIRD}),
    "new": TaskAnswers(OWN, None, {8: SECOND, 9: THIRD}),
}


def test_scores_and_changes_come_seed_by_seed_the_versions_own_first() -> None:
    old = noise(**BOTH).tasks[0]
    assert old is not None
    assert old["seeds"] == [7, 8, 9]
    assert old["scores"] == pytest.approx([0.5, 0.3, 0.7])
    assert old["changes"] == pytest.approx([0.0, -0.2, 0.2])
    assert old["change"]["sd"] == pytest.approx(0.2)
    assert (old["standing"], old["ratio"]) == ("within_noise", 0.0)


def test_without_a_parents_score_there_is_a_spread_of_scores_and_no_verdict_on_a_change() -> None:
    new = noise(**BOTH).tasks[1]
    assert new is not None
    assert (new["changes"], new["change"], new["standing"]) == (None, None, None)
    assert new["score"]["sd"] == pytest.approx(0.2)
    assert "no score to compare with" in new["detail"]


def test_the_summary_is_what_each_seed_would_have_reported_as_the_version() -> None:
    summary = noise(**BOTH).whole["summary"]
    # Average accuracy: both tasks score 0.5, 0.3, 0.7; forgetting 0.5 − score; flips of "old": 1, 2 and 0 of 10 turn wrong.
    assert (summary["average_accuracy"]["mean"], summary["average_accuracy"]["sd"]) == pytest.approx(
        (0.5, 0.2)
    )
    assert (summary["forgetting"]["low"], summary["forgetting"]["high"]) == pytest.approx((-0.2, 0.2))
    assert (summary["negative_flip_rate"]["low"], summary["negative_flip_rate"]["high"]) == pytest.approx(
        (0.0, 0.2)
    )
    assert summary["forward_transfer"] is None  # the seed takes no part in it
    own = update_summary([OLD, NEW], summarise(MATRIX, LEARNT_AT))
    assert own["average_accuracy"] == pytest.approx(0.5)


def test_graded_scores_are_compared_by_their_means() -> None:
    parent, own, other = (
        answered("00", graded=graded) for graded in ([-1.0, -2.0], [-1.0, -1.0], [-2.0, -2.0])
    )
    found = noise(
        old=TaskAnswers(own, parent, {8: other}), new=TaskAnswers(None, None, {}), others=(8,)
    ).tasks[0]
    assert found is not None
    assert found["scores"] == pytest.approx([-1.0, -2.0])
    assert found["changes"] == pytest.approx([0.5, -0.5])


def test_seeds_are_compared_on_the_examples_that_all_of_them_answered() -> None:
    more = answered("1111010000" + "1" * 10)  # the eval set grew before the version was recorded
    old = noise(old=TaskAnswers(more, PARENT, {8: SECOND, 9: THIRD}), new=BOTH["new"]).tasks[0]
    assert old is not None
    assert old["scores"] == pytest.approx([0.5, 0.3, 0.7])


def test_a_task_that_no_further_seed_was_scored_on_has_no_noise_and_then_the_summary_has_none() -> None:
    found = noise(old=BOTH["old"], new=TaskAnswers(OWN, None, {8: SECOND}))
    assert found.tasks[1] is None
    assert found.tasks[0] is not None
    assert found.whole["summary"] == {}
    assert "no summary over seeds, as not every seed was scored on 'new'" in found.whole["detail"]


def test_seeds_that_the_statistics_do_not_name_count_for_nothing() -> None:
    found = noise(**BOTH, others=(9,))  # 8 is of an earlier attempt
    assert found.whole["seeds"] == [7, 9]
    assert found.tasks[0] is not None
    assert found.tasks[0]["scores"] == pytest.approx([0.5, 0.7])
    seedless = noise(**BOTH, others=(), reason="draws nothing")
    assert (seedless.tasks, seedless.whole["seeds"]) == ([None, None], [7])
    assert seedless.whole["detail"] == "draws nothing"


def test_seeds_that_failed_are_named_with_their_codes() -> None:
    found = noise(**BOTH, failed={"5": "out_of_memory"})
    assert found.whole["failed"] == {"5": "out_of_memory"}
    assert "1 more failed (out_of_memory)" in found.whole["detail"]


def test_all_tasks_of_a_report_are_tested_together() -> None:
    parent, own, other = (answered("1" * right + "0" * (100 - right)) for right in (10, 30, 26))
    gained = TaskAnswers(own, parent, {8: other, 9: own})
    alone = noise(old=gained, new=TaskAnswers(own, None, {8: other, 9: own})).tasks[0]
    both = noise(old=gained, new=gained).tasks[0]
    assert alone is not None
    assert both is not None
    assert alone["standing"] == both["standing"] == "beyond_noise"
    assert (
        alone["p_value"] == alone["p_value_holm"] == pytest.approx(0.00507, abs=1e-5)
    )  # t = 14 with 2 degrees
    assert both["p_value_holm"] == pytest.approx(2 * alone["p_value"])


def test_seeds_that_tie_on_a_small_eval_set_are_no_certainty() -> None:
    better = answered("1111110000")  # one more of ten than the parent, in both seeds
    found = noise(
        old=TaskAnswers(better, PARENT, {8: better}), new=TaskAnswers(OWN, None, {8: OWN}), others=(8,)
    )
    old = found.tasks[0]
    assert old is not None
    assert (old["standing"], old["ratio"], old["change"]["sd"]) == ("within_noise", None, 0.0)
    assert old["change"]["mean_interval"][0] < 0.0
    assert old["score"]["sd_interval"][1] > 0.0


def test_where_every_further_seed_ran_away_the_report_says_so_and_shows_no_figure() -> None:
    nobody = TaskAnswers(OWN, PARENT, {})
    found = noise(old=nobody, new=nobody, others=(), diverged=[8], reason="ran away")
    assert found.tasks == [None, None]
    assert (found.whole["seeds"], found.whole["diverged"], found.whole["detail"]) == ([7], [8], "ran away")
