"""What the README says of the command line works as printed."""

import shlex
from pathlib import Path

import pytest

from tests.scenes import World
from tests.service.cli.conftest import Palimpsest
from tests.service.cli.test_cli_watching import a_worker

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_printed(
    palimpsest: Palimpsest, world: World, api_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    section = (ROOT / "README.md").read_text().split("## From the command line")[1].split("\n## ")[0]
    lines = section.split("```sh")[1].split("```")[0].strip().splitlines()
    commands = [shlex.split(line.replace(":8000", f":{api_port}"), comments=True) for line in lines]
    assert len(commands) == 9
    with a_worker(world):
        for name, *arguments in commands:
            assert name == "palimpsest"
            result = palimpsest(*arguments)
            assert result.code == 0, (arguments, result)
    assert world.get("/models/helpdesk")["champion"] == 0
