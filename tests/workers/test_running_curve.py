"""The course of the loss that travels with the progress: all of the way, in few points, whatever the number of steps."""

import threading
from typing import Any

import pytest

from service.updates.leases import Claim, LeaseState
from workers.lease import Lease
from workers.running_curve import MOST_POINTS, RunningCurve
from workers.training.contract import Progress


@pytest.mark.parametrize("steps", [1, MOST_POINTS - 1, MOST_POINTS, 1000, 54_321])
def test_a_long_training_is_told_in_few_evenly_spread_points(steps: int) -> None:
    curve = RunningCurve()
    for step in range(1, steps + 1):
        curve.add(step, 1 / step)
    assert min(steps, MOST_POINTS // 2 - 1) <= len(curve.points) < MOST_POINTS
    gaps = {later[0] - earlier[0] for earlier, later in zip(curve.points, curve.points[1:], strict=False)}
    assert len(gaps) <= 1
    assert steps - curve.points[-1][0] < max(gaps, default=1)
    assert all(loss == round(1 / step, 5) for step, loss in curve.points)


def test_reports_that_leave_steps_out_are_points_all_the_same() -> None:
    curve = RunningCurve()
    for step in (0, 7, 7, 19):
        curve.add(step, 0.5)
    assert [step for step, _ in curve.points] == [0, 7, 19]


def test_a_training_that_begins_anew_begins_a_new_curve() -> None:
    curve = RunningCurve()
    for step in range(500):
        curve.add(step, 1.0)
    for step in range(3):
        curve.add(step, 2.0)
    assert curve.points == [(0, 2.0), (1, 2.0), (2, 2.0)]


def test_the_curve_goes_with_every_renewal_of_the_lease_and_outlasts_the_training(database: str) -> None:
    written: list[dict[str, Any]] = []
    evaluating = threading.Event()

    def renew(_session: object, *, progress: dict[str, Any] | None, **_rest: object) -> LeaseState:
        written.append(progress or {})
        if progress and progress["phase"] == "evaluating":
            evaluating.set()
        return LeaseState(held=True, cancel_requested=False)

    claim = Claim("acme", "upd_1", "mdl_1", fence=1, attempt=1, request_id=None, rescore=False)
    with Lease(claim, stopping=threading.Event(), renew=renew) as lease:
        lease.report(Progress("tokenising", 5, 9))
        lease.report(Progress("training", 1, 3, loss=0.75))
        lease.report(Progress("training", 2, 3, loss=0.5))
        lease.report(Progress("training", 4, 6, loss=0.625, repeat=2, repeats=2))
        lease.report(Progress(phase="evaluating"))
        assert evaluating.wait(60)
    assert written[-1]["losses"] == [(1, 0.75), (2, 0.5)]
