"""The forecast bench: what it makes of observations."""

import math

import pytest

from bench.cells import Cell
from bench.forecast import Observation, figures_of, forecast_all, kept
from service.forecasts.estimating import Signs

CELL, OTHER = (
    Cell("digits-split", "sequential", 0, quick=False),
    Cell("digits-split", "replay", 0, quick=False),
)


def lineage(cell: Cell, *, factor: float) -> list[Observation]:
    """Five updates whose probes tell everything: each task loses `factor` times what its probe lost."""
    found = []
    for update in range(2, 6):
        for task in range(update - 1):
            lost = 0.01 * (1 + (3 * update + 5 * task) % 7)
            signs = Signs(-lost, -lost, parent_score=0.9, new_loss=2.0 + update, label_overlap=0.0)
            found.append(Observation(cell, update, task, 8, 160, signs, change=-factor * lost))
    return found


def test_a_forecast_sees_no_update_but_those_before_it_in_its_own_lineage() -> None:
    whole = forecast_all([*lineage(CELL, factor=3.0), *lineage(OTHER, factor=0.0)])
    alone = forecast_all(lineage(CELL, factor=3.0))
    assert whole[: len(alone)] == alone
    early = forecast_all([one for one in lineage(CELL, factor=3.0) if one.update < 4])
    assert alone[: len(early)] == early
    assert [one.change for one in alone if one.seen.update == 2] == pytest.approx(
        [one.signs.score_change for one in lineage(CELL, factor=3.0) if one.update == 2]
    ), "without a past it is the probe itself"


def test_figures_tell_what_predicts_and_how_far_it_is_off() -> None:
    figures = figures_of(forecast_all([*lineage(CELL, factor=3.0), *lineage(OTHER, factor=0.0)]))
    assert figures["all.forecasts"] == 18, "two lineages of tasks 1 to 4, without the second update's"
    assert figures["all.forecast.rho"] > 0.9 > figures["all.probe_alone.rho"]
    assert figures["all.forecast.error"] < figures["all.probe_alone.error"]
    assert math.isnan(figures["all.overlap_alone.rho"]), "it never varies here"
    assert figures["all.intervals"] == 8, "the fifth updates have three before them"


def test_no_file_has_no_observations() -> None:
    assert list(kept(None)) == []
