"""docs/guides/: every command works as printed, in the order in which a reader comes by them; the tables are true."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient

from service.cli.problems import ExitCode
from service.evaluations.gate import GatePolicy, smallest_deciding_size
from tests.scenes import World
from tests.service.cli.conftest import key_of
from tests.service.cli.test_cli_watching import a_worker
from tests.service.web.visitors import lineage

ROOT = Path(__file__).parents[3]
GUIDES = ROOT / "docs" / "guides"
MARK = "<!-- run by tests/service/cli/test_cli_guides.py -->\n"
ORDER = ("first-pipeline", "reading-a-report", "choosing-a-strategy", "gate-policies", "rollback-drill")
TIMEOUT_SECONDS = 240


def blocks(guide: str) -> list[tuple[str, str]]:
    """The language and text of each block that this file runs."""
    text = (GUIDES / f"{guide}.md").read_text()
    return re.findall(rf"{re.escape(MARK)}```(\w+)\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def environment(world: World, api_port: int, tmp_path: Path) -> dict[str, str]:
    """A reader's shell: the command on the PATH, the service's address and a key."""
    command = tmp_path / "palimpsest"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m service.cli "$@"\n')
    command.chmod(0o755)
    python = tmp_path / "python3"
    python.symlink_to(sys.executable)
    return os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PALIMPSEST_URL": f"http://127.0.0.1:{api_port}", "PALIMPSEST_API_KEY": key_of(world.client),
    }  # fmt: skip


def follow(language: str, block: str, environment: dict[str, str], folder: Path) -> str:
    """Runs a block as its reader would; returns what it printed."""
    if language == "yaml":
        (job,) = yaml.safe_load(block)["jobs"].values()
        steps = [step["run"] for step in job["steps"] if "run" in step]
        runner = a_fresh_runner(environment, folder.parent / "runner")
        return "".join(follow("sh", step, runner, folder) for step in steps)
    arguments = [sys.executable, "-c", block] if language == "python" else ["bash", "-euc", block]
    done = subprocess.run(
        arguments, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode == 0, (block, done.stdout, done.stderr)
    return done.stdout


def a_fresh_runner(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """The shell of a CI machine: the command is there once pip installed it. This pip only does as if, without a network."""
    folder.mkdir()
    reader, _, machine = environment["PATH"].partition(":")
    package = "git+https://git.example/palimpsest"
    pip = folder / "pip"
    pip.write_text(f'#!/bin/sh\n[ "$*" = "install {package}" ] && cp {reader}/palimpsest {folder}/\n')
    pip.chmod(0o755)
    (folder / "python3").symlink_to(sys.executable)
    return environment | {"PATH": f"{folder}:{machine}", "PALIMPSEST_PACKAGE": package}


def test_the_nightly_script_tells_a_night_without_new_rows_from_a_refusal(
    client: TestClient, environment: dict[str, str], tmp_path: Path
) -> None:
    lineage(client, model="triage")
    script = blocks("first-pipeline")[1][1].partition("\n")[2]  # without the line that adds rows
    quiet = follow("sh", script.replace("triage shipping", "triage task-0"), environment, tmp_path)
    assert quiet == "nothing new tonight\n"
    refused = subprocess.run(
        ["bash", "-euc", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )  # fmt: skip
    assert (refused.returncode, refused.stdout) == (ExitCode.ERROR, ""), "there is no such task"


@pytest.mark.slow
@pytest.mark.long
def test_the_guides_work_as_printed_from_the_first_to_the_last(
    world: World, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    said: dict[str, str] = {}
    with a_worker(world):
        for guide in ORDER:
            said[guide] = "".join(follow(*block, environment, folder) for block in blocks(guide))
    assert "held: the eval sets are too small" in said["first-pipeline"]
    assert "inconclusive" in said["reading-a-report"]
    assert (tmp_path / "runner" / "palimpsest").exists(), "the CI job installs what it calls"
    kept = json.loads((folder / "report.json").read_text())
    assert kept["version"] == json.loads((folder / "update.json").read_text())["version"]
    history = world.get("/models/triage/history")["data"]
    moves = [(move["kind"], move["to_version"]) for move in history if move["alias"] == "champion"]
    assert moves[:2] == [("rolled_back", 2), ("rolled_back", moves[1][1])]
    assert world.get("/models/triage")["champion"] == 2


def test_every_guide_is_followed_and_every_link_leads_somewhere() -> None:
    assert {path.stem for path in GUIDES.glob("*.md")} == set(ORDER)
    for guide in ORDER:
        text = (GUIDES / f"{guide}.md").read_text()
        assert text.count("```sh\n") + text.count("```python\n") + text.count("```yaml\n") == len(
            blocks(guide)
        )
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (GUIDES / link).exists(), (guide, link)


def test_the_measured_table_is_that_of_the_benchmarks() -> None:
    table = (GUIDES / "choosing-a-strategy.md").read_text().split("| `joint` | 0.953")[1]
    shown = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]*) ?\|$", "| `joint` | 0.953" + table, re.MULTILINE
    )
    streams = re.split(r"^### ", (ROOT / "docs" / "benchmarks.md").read_text(), flags=re.MULTILINE)
    measured = [
        dict(
            re.findall(
                r"^\| `(\w+)` \| ([\d.]+) ±", next(s for s in streams if f"`{name}`\n" in s), re.MULTILINE
            )
        )
        for name in ("digits-split", "digits-permuted", "newsgroups")
    ]
    assert len(shown) == 11
    for strategy, *figures in shown:
        assert figures == [stream.get(strategy, "") for stream in measured], strategy


def test_the_sizes_and_defaults_of_the_gates_guide_are_true() -> None:
    text = (GUIDES / "gate-policies.md").read_text()
    policy = GatePolicy()
    assert f"| `max_regression` | {policy.max_regression} |" in text
    assert f"| `confidence` | {policy.confidence} |" in text
    assert f"| `on_inconclusive` | `{policy.on_inconclusive}` |" in text
    for percent, size in ((2, 149), (5, 59), (1, 299)):
        assert smallest_deciding_size(percent / 100, 0.95) == size
        assert str(size) in text


def test_every_field_that_the_reading_guide_names_is_in_a_report(world: World) -> None:
    document = httpx.Response(200, text=(ROOT / "docs" / "openapi.json").read_text()).json()["components"][
        "schemas"
    ]
    text = (GUIDES / "reading-a-report.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", text)) - {"pass", "fail", "inconclusive", "max_regression"}
    fields = {name for schema in document.values() for name in schema.get("properties", {})}
    assert named <= fields
