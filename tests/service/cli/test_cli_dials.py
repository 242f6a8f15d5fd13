"""Dials and blends from the command line; and docs/dial.md, whose commands do what it says."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.scenes import World
from tests.service.cli.conftest import Palimpsest
from tests.service.cli.working import working
from workers.tasks import run_next_dial, run_next_update

pytestmark = pytest.mark.slow  # two updates have to be trained

PAGE = Path(__file__).parents[3] / "docs" / "dial.md"


@pytest.fixture
def learnt(world: World) -> World:
    """A model that learnt two tasks, the second without rehearsing the first."""
    world.model()
    world.task("one")
    world.task("two", ("random", "socket"))
    forgetful: dict[str, Any] = {
        "strategy": {"name": "sequential"},
        "training": {**World.TRAINING, "epochs": 6},
    }
    world.learn("one", **forgetful)
    world.learn("two", **forgetful)
    return world


def test_a_dial_is_scored_shown_and_then_only_read_and_a_point_of_it_is_taken(
    learnt: World, palimpsest: Palimpsest
) -> None:
    asked = palimpsest("version", "dial", "triage", "2", "--beta", "0.5", "--no-wait", "--json")
    assert (asked.code, asked.json["status"], asked.json["betas"]) == (0, "queued", [0, 0.5, 1])
    with working(run_next_update, run_next_dial):
        shown = palimpsest("version", "dial", "triage")
        assert shown.code == 0, shown
        read = palimpsest("version", "dial", "triage", "2", "--json")
        assert (read.code, read.err) == (0, "")
        assert read.json == learnt.get("/models/triage/versions/2/dial")
        middle = read.json["points"][1]
        assert f"{middle['average_accuracy']:.3f}" in shown.out
        for task in middle["tasks"]:
            assert f"{task['interval'][0]:.3f} … {task['interval'][1]:.3f}" in shown.out
        taken = palimpsest("version", "blend", "triage", "2", "--beta", "0.5", "--wait")
        assert taken.code == 5, "the version itself is champion: a person decides"
        assert "a person decides on the blend" in taken.err
        assert "palimpsest update approve" in taken.out
    refused = palimpsest("version", "blend", "triage", "2", "--beta", "1")
    assert (refused.code, "less than 1" in refused.err) == (1, True)
    base = palimpsest("version", "dial", "triage", "0")
    assert (base.code, "[no_parent, at version]" in base.err) == (1, True)


def test_the_commands_of_the_guide_work_as_printed(learnt: World, palimpsest: Palimpsest) -> None:
    blocks = PAGE.read_text(encoding="utf-8").split("```sh\n")[1:]
    commands = [shlex.split(line) for block in blocks for line in block.split("```")[0].strip().splitlines()]
    assert [command[:3] for command in commands] == [
        ["palimpsest", "version", "dial"],
        ["palimpsest", "version", "blend"],
    ]
    with working(run_next_update, run_next_dial):
        for _, *arguments in commands:
            result = palimpsest(*arguments)
            assert result.code == 0, (arguments, result)
    dial = learnt.get("/models/triage/versions/2/dial")
    assert [point["beta"] for point in dial["points"]] == [step / 10 for step in range(11)]
    assert learnt.get("/models/triage/updates")["data"][0]["strategy"]["name"] == "blend"
