"""Forecasts from the command line; and docs/forecast.md, whose command does what it says."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli.problems import ExitCode
from tests.scenes import World
from tests.service.cli.conftest import Palimpsest, key_of
from tests.service.cli.working import working
from workers.tasks import run_next_forecast

SOURCE = Path(__file__).parents[3]
PAGE = SOURCE / "docs" / "forecast.md"


@pytest.fixture
def ready(world: World) -> World:
    """A model with two tasks to learn."""
    world.model()
    world.task("one")
    world.task("two", ("random", "socket"))
    return world


@pytest.fixture
def learnt(ready: World) -> World:
    """The same after it learnt the first."""
    ready.learn("one")
    return ready


@pytest.mark.slow  # an update has to be trained
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


def test_a_forecast_is_cancelled(ready: World, palimpsest: Palimpsest) -> None:
    asked = palimpsest("update", "forecast", "triage", "two", "--json").json["id"]
    cancelled = palimpsest("update", "cancel-forecast", asked)
    assert (cancelled.code, cancelled.out) == (0, f"{asked} is cancelled.\n")
    assert ready.get(f"/forecasts/{asked}")["status"] == "cancelled"
    assert palimpsest("update", "show-forecast", asked).code == ExitCode.FAILED


def test_ctrl_c_leaves_the_forecast_and_says_how_to_see_and_cancel_it(ready: World, api_port: int) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(SOURCE), "PALIMPSEST_URL": f"http://127.0.0.1:{api_port}",
        "PALIMPSEST_API_KEY": key_of(ready.client),
    }  # fmt: skip
    command = [sys.executable, "-m", "service.cli", "update", "forecast", "triage", "two", "--wait"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        said = iter(waiting.stderr.readline, "")
        assert "queued\n" in said  # it waits by now
        waiting.send_signal(signal.SIGINT)
        told = waiting.stderr.read()
    [forecast] = ready.get("/models/triage/forecasts")["data"]
    assert (waiting.returncode, forecast["status"]) == (ExitCode.INTERRUPTED, "queued")
    assert told == (
        f"The forecast {forecast['id']} goes on. See it: palimpsest update show-forecast {forecast['id']}\n"
        f"Cancel it: palimpsest update cancel-forecast {forecast['id']}\n"
    )


def test_what_is_refused_is_said(ready: World, palimpsest: Palimpsest) -> None:
    refused = palimpsest("update", "forecast", "triage", "two", "--strategy", "joint")
    assert (refused.code, "strategy_not_forecast" in refused.err) == (1, True)
