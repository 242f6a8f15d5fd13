from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from service.evaluations.gate import Comparison, GatePolicy, decide
from service.evaluations.metrics import summarise
from service.evaluations.significance import delta_interval, noninferiority
from service.reports.forgetting import (
    PairedOutcome,
    TaskEvidence,
    UpdateReport,
    forgetting_report,
    update_report,
)

# Version 0 has no head; 1 learns refunds, 2 returns, 3 shipping.
MATRIX = [
    [None, None, None],
    [0.90, 0.00, 0.00],
    [0.85, 0.80, 0.00],
    [0.81, 0.60, 0.70],
]
LEARNT_AT = [1, 2, 3]

REFUNDS = TaskEvidence("refunds", "old", 100, 0.81, 0.85, 0.90, 0.90, PairedOutcome(100, 6, 2))
RETURNS = TaskEvidence("returns", "old", 100, 0.60, 0.80, 0.80, 0.80, PairedOutcome(100, 21, 1))
SHIPPING = TaskEvidence("shipping", "new", 50, 0.70, 0.00, 0.70, 0.00, PairedOutcome(50, 0, 35))


def report(*tasks: TaskEvidence, matrix: list[list[float | None]] | None = None) -> UpdateReport:
    policy = GatePolicy()
    comparisons = [
        Comparison(
            evidence.task,
            evidence.role,
            evidence.paired.size,
            evidence.score,
            evidence.parent_score,
            evidence.paired.negative_flips,
            evidence.paired.positive_flips,
        )
        for evidence in tasks
        if evidence.paired is not None
    ]
    return update_report(
        model="support",
        version=3,
        parent=2,
        strategy="replay",
        tasks=tasks,
        lineage=summarise(MATRIX if matrix is None else matrix, LEARNT_AT),
        verdict=decide(policy, comparisons),
        confidence=policy.confidence,
    )


def test_the_report_has_the_promised_fields_and_is_json() -> None:
    document = json.loads(json.dumps(report(REFUNDS, RETURNS, SHIPPING)))
    assert list(document) == ["model", "version", "parent", "strategy", "tasks", "summary", "verdict"]
    assert set(document["tasks"][0]) == {
        "task",
        "role",
        "eval_size",
        "score",
        "parent_score",
        "learned_score",
        "best_score",
        "delta",
        "delta_ci",
        "p_value",
        "p_value_holm",
        "forgetting",
        "flips",
        "measures",
        "parent_measures",
    }
    assert set(document["summary"]) == {
        "average_accuracy",
        "learning_accuracy",
        "backward_transfer",
        "forward_transfer",
        "forgetting",
        "stability",
        "worst_retention",
        "plasticity",
        "negative_flip_rate",
    }
    assert set(document["verdict"]["reasons"][0]) >= {"task", "rule", "observed", "bound", "detail"}


def test_every_task_shows_what_it_lost_against_its_parent_and_its_best() -> None:
    refunds, returns, shipping = report(REFUNDS, RETURNS, SHIPPING)["tasks"]
    assert refunds["delta"] == pytest.approx(-0.04)  # (2 − 6) / 100
    assert refunds["forgetting"] == pytest.approx(0.09)  # 0.90 − 0.81
    assert refunds["flips"] == {"negative": 6, "positive": 2}
    assert returns["delta"] == pytest.approx(-0.20)  # (1 − 21) / 100
    assert shipping["delta"] == pytest.approx(0.70)
    assert (shipping["best_score"], shipping["forgetting"]) == (
        None,
        None,
    )  # new: there was nothing to forget


def test_the_interval_in_the_report_is_the_one_the_gate_decided_on() -> None:
    found = report(REFUNDS)["tasks"][0]["delta_ci"]
    gate = noninferiority(6, 2, 100, 0.02, 0.95)
    assert found == [gate.lower, gate.upper] == list(delta_interval(6, 2, 100, 0.95))


def test_p_values_are_corrected_for_the_number_of_tasks_looked_at() -> None:
    refunds, returns, shipping = report(REFUNDS, RETURNS, SHIPPING)["tasks"]
    # refunds: 2·(1 + 8 + 28) / 2^8; returns: 2·(1 + 22) / 2^22; shipping: 2 / 2^35
    assert refunds["p_value"] == pytest.approx(74 / 256)
    assert returns["p_value"] == pytest.approx(46 / 2**22)
    assert shipping["p_value"] == pytest.approx(2 / 2**35)
    # Holm: the smallest by 3, the next by 2, the largest by 1
    assert shipping["p_value_holm"] == pytest.approx(3 * 2 / 2**35)
    assert returns["p_value_holm"] == pytest.approx(2 * 46 / 2**22)
    assert refunds["p_value_holm"] == pytest.approx(74 / 256)


def test_the_summary_tells_stability_from_plasticity() -> None:
    summary = report(REFUNDS, RETURNS, SHIPPING)["summary"]
    # retention: 0.81 / 0.90 = 0.90 and 0.60 / 0.80 = 0.75
    assert summary["stability"] == pytest.approx(0.825)
    assert summary["worst_retention"] == pytest.approx(0.75)
    assert summary["plasticity"] == pytest.approx(0.70)
    # old tasks only: (6 + 21) / 200
    assert summary["negative_flip_rate"] == pytest.approx(0.135)
    assert summary["average_accuracy"] == pytest.approx(2.11 / 3)  # 0.81 + 0.60 + 0.70
    assert summary["backward_transfer"] == pytest.approx(-0.145)  # (−0.09 − 0.20) / 2
    assert summary["forgetting"] == pytest.approx(0.145)
    assert summary["forward_transfer"] is None


def test_stability_is_the_same_in_both_reports_of_a_version() -> None:
    lineage = forgetting_report(
        model="support",
        version=3,
        tasks=["refunds", "returns", "shipping"],
        versions=[0, 1, 2, 3],
        matrix=MATRIX,
        learnt_at=LEARNT_AT,
    )
    assert lineage["summary"]["stability"] == pytest.approx(report(REFUNDS, RETURNS)["summary"]["stability"])


def test_a_relearnt_task_counts_for_stability_and_for_plasticity() -> None:
    again = replace(RETURNS, role="relearnt", score=0.88, paired=PairedOutcome(100, 0, 8))
    summary = report(REFUNDS, again)["summary"]
    assert summary["stability"] == pytest.approx((0.90 + 1.10) / 2)  # 0.81/0.90 and 0.88/0.80
    assert summary["plasticity"] == pytest.approx(0.88)


def test_the_first_update_has_nothing_to_lose() -> None:
    first = TaskEvidence("refunds", "new", 100, 0.9, None, 0.9, None)
    document = report(first)
    task = document["tasks"][0]
    assert task["delta"] is task["delta_ci"] is task["p_value"] is task["p_value_holm"] is None
    assert task["forgetting"] is task["flips"] is None
    assert document["summary"]["stability"] is document["summary"]["negative_flip_rate"] is None
    assert document["summary"]["plasticity"] == 0.9
    assert document["verdict"] is not None
    assert document["verdict"]["decision"] == "pass"


def test_a_task_without_a_test_does_not_weigh_on_the_correction() -> None:
    untested = replace(SHIPPING, parent_score=None, paired=None)
    refunds, shipping = report(REFUNDS, untested)["tasks"]
    assert shipping["p_value_holm"] is None
    assert refunds["p_value_holm"] == refunds["p_value"]


def test_where_an_eval_set_grew_the_change_is_on_the_examples_both_were_scored_on() -> None:
    grown = replace(REFUNDS, eval_size=400, score=0.70)
    assert report(grown)["tasks"][0]["delta"] == pytest.approx(-0.04)


def test_graded_scores_carry_their_bootstrap_interval_and_no_mcnemar() -> None:
    graded = replace(
        REFUNDS,
        score=-1.2,
        parent_score=-1.0,
        learned_score=-0.9,
        best_score=-0.9,
        graded_interval=(-0.3, -0.1),
    )
    document = report(replace(graded, paired=None))
    task = document["tasks"][0]
    assert task["delta"] == pytest.approx(-0.2)
    assert task["delta_ci"] == [-0.3, -0.1]
    (alone,) = report(replace(graded, graded_interval=(-math.inf, math.inf)))["tasks"]
    assert alone["delta"] == task["delta"]
    assert alone["delta_ci"] is None
    assert task["p_value"] is None
    assert document["summary"]["stability"] == pytest.approx(math.exp(-0.3))  # perplexity then over now


def test_the_lineage_report_shows_the_matrix_with_null_where_nothing_was_scored() -> None:
    document = json.loads(
        json.dumps(
            forgetting_report(
                model="support",
                version=3,
                tasks=["refunds", "returns", "shipping"],
                versions=[0, 1, 2, 3],
                matrix=MATRIX,
                learnt_at=LEARNT_AT,
                reference=[0.95, 0.85, None],
            )
        )
    )
    assert list(document) == ["model", "version", "tasks", "versions", "matrix", "measures", "summary"]
    assert document["matrix"][0] == [None, None, None]
    assert document["matrix"][3] == [0.81, 0.60, 0.70]
    assert document["summary"]["learning_accuracy"] == pytest.approx(0.80)  # (0.90 + 0.80 + 0.70) / 3
    assert document["summary"]["intransigence"] == pytest.approx(0.05)  # (0.05 + 0.05) / 2


def test_a_lineage_report_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not number 4 rows"):
        forgetting_report(
            model="m",
            version=3,
            tasks=["a", "b", "c"],
            versions=[0, 1, 3],
            matrix=MATRIX,
            learnt_at=LEARNT_AT,
        )
    with pytest.raises(ValueError, match="2 task names for 3 columns"):
        forgetting_report(
            model="m", version=3, tasks=["a", "b"], versions=[0, 1, 2, 3], matrix=MATRIX, learnt_at=LEARNT_AT
        )
