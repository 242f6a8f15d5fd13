"""Forecasts from the command line; and docs/forecast.md, whose command does what it says."""

import shlex
from pathlib import Path

import pytest

from tests.scenes import World
from tests.service.cli.conftest import Palimpsest
from tests.service.cli.working import working
from workers.tasks import run_next_forecast

pytestmark = pytest.mark.slow  # an update has to be trained

PAGE = Path(__file__).parents[3] / "docs" / "forecast.md"


@pytest.fixture
def learnt(world: World) -> World:
    """A model that learnt a task, and another task to learn."""
    world.model()
    world.task("one")
    world.task("two", ("random", "socket"))
    world.learn("one")
    return world


def test_a_forecast_is_asked_for_waited_for_shown_and_listed(learnt: World, palimpsest: Palimpsest) -> None:
    asked = palimpsest("update", "forecast", "triage", "two", "--level", "0.9", "--json")
    assert (asked.code, asked.json["status"], asked.json["level"]) == (0, "queued", 0.9)
    (command,) = PAGE.read_text(encoding="utf-8").split("```sh\n")[1].split("```")[0].strip().splitlines()
    with working(run_next_forecast):
        shown = palimpsest(*shlex.split(command)[1:])
    assert shown.code == 0, shown
    newest, first = learnt.get("/models/triage/forecasts")["data"]
    assert (newest["strategy"]["name"], newest["status"], first["id"]) == (
        "sequential",
        "done",
        asked.json["id"],
    )
    (task,) = newest["forecast"]["tasks"]
    assert f"{task['predicted_change']:+.3f}" in shown.out
    assert "0 past updates" in " ".join(shown.out.split())
    read = palimpsest("update", "show-forecast", newest["id"], "--json")
    assert (read.code, read.json) == (0, newest)
    listed = palimpsest("update", "forecasts", "triage")
    assert (listed.code, newest["id"] in listed.out, first["id"] in listed.out) == (0, True, True)


def test_what_is_refused_is_said(learnt: World, palimpsest: Palimpsest) -> None:
    refused = palimpsest("update", "forecast", "triage", "two", "--strategy", "joint")
    assert (refused.code, "strategy_not_forecast" in refused.err) == (1, True)
