"""`palimpsest version import`, and docs/importing.md as its reader follows it."""

import json
import re
import tarfile
from pathlib import Path

import pytest

from tests.scenes import World
from tests.service.cli.conftest import Palimpsest
from tests.service.cli.test_cli_guides import ROOT, follow
from tests.service.cli.test_cli_guides import environment as environment  # the reader's shell, a fixture
from tests.service.cli.test_cli_watching import a_worker
from tests.service.imports.uploads import files, tar_of

MARK = "<!-- run by tests/service/cli/test_cli_importing.py -->\n"
PAGE = ROOT / "docs" / "importing.md"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder as PEFT leaves it, and things beside it that no adapter needs."""
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    for name, data in files().items():
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text("made by PEFT")
    (folder / "optimizer.pt").write_bytes(b"large")
    return folder


@pytest.fixture
def scene(world: World) -> World:
    """A model with two tasks to measure with."""
    world.model()
    for task in ("one", "two"):
        world.task(task, train=1, held=1)
    return world


def test_a_folder_is_packed_and_sent_and_the_same_folder_is_the_same_request(
    palimpsest: Palimpsest, scene: World, adapter: Path
) -> None:
    command = (
        "version",
        "import",
        "triage",
        adapter,
        "--tasks",
        "one,two",
        "--idempotency-key",
        "k",
        "--json",
    )
    asked = palimpsest(*command, "--rows", "fresh", "--promotion", "manual", "--metadata", '{"a": 1}')
    assert (asked.code, asked.json["status"], asked.json["tasks"]) == (0, "queued", ["one", "two"])
    assert (asked.json["promotion"], asked.json["metadata"]) == ("manual", {"a": 1})
    assert asked.json["strategy"]["parameters"]["rows"] == "fresh"
    again = palimpsest(*command, "--rows", "fresh", "--promotion", "manual", "--metadata", '{"a": 1}')
    assert again.json["id"] == asked.json["id"]
    told = palimpsest("version", "import", "triage", adapter, "--tasks", "one", "--tasks", "two")
    assert "Watch it: palimpsest update watch upd_" in told.out


def test_a_tar_is_sent_as_it_is(palimpsest: Palimpsest, scene: World, tmp_path: Path) -> None:
    tar = tmp_path / "adapter.tar"
    tar.write_bytes(tar_of(files()))
    asked = palimpsest("version", "import", "triage", tar, "--tasks", "one", "--json")
    assert asked.json["strategy"]["parameters"]["bytes"] == tar.stat().st_size


def test_what_is_no_adapter_is_said_before_anything_is_sent_or_by_the_api(
    palimpsest: Palimpsest, scene: World, tmp_path: Path, adapter: Path
) -> None:
    none = palimpsest("version", "import", "triage", tmp_path / "nowhere", "--tasks", "one")
    assert (none.code, "cannot be read" in none.err) == (1, True)
    empty = palimpsest("version", "import", "triage", tmp_path, "--tasks", "one")
    assert (empty.code, "holds no adapter_config.json" in empty.err) == (1, True)
    (adapter / "labels.json").unlink()
    lacking = palimpsest("version", "import", "triage", adapter, "--tasks", "one")
    assert (lacking.code, "lacks labels.json" in lacking.err) == (1, True)


def test_waiting_ends_with_the_exit_code_of_the_end(
    palimpsest: Palimpsest, scene: World, adapter: Path
) -> None:
    with a_worker(scene):
        ended = palimpsest("version", "import", "triage", adapter, "--tasks", "one", "--wait")
    assert (ended.code, "adapter_does_not_fit" in ended.out + ended.err) == (4, True)  # one layer's worth


@pytest.mark.slow
def test_the_page_works_as_printed(world: World, environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    text = PAGE.read_text()
    blocks = re.findall(rf"{re.escape(MARK)}```(\w+)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```sh\n") + text.count("```python\n")
    with a_worker(world):
        said = "".join(follow(language, block, environment, folder) for language, block in blocks)
    assert "promoted" in said
    world.work()
    (first,) = [v for v in world.get("/models/triage/versions")["data"] if "champion" in v["aliases"]]
    assert (first["strategy"], first["version"], first["tasks"]) == ("import", 1, ["billing"])
    updates = world.get("/models/triage/updates")["data"]
    assert [update["status"] for update in updates] == ["awaiting_approval", "awaiting_approval", "promoted"]
    with tarfile.open(folder / "downloaded.tar") as tar:
        facts = json.load(tar.extractfile("version.json"))  # type: ignore[arg-type]  # it is a plain file
    assert facts["lineage"]["import"]["sha256"] == updates[-1]["strategy"]["parameters"]["sha256"]


def test_every_code_that_the_page_names_is_one_that_the_code_gives() -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE.read_text()))
    source = "".join(
        path.read_text()
        for folder in ("service/imports", "workers", "service/schemas.py", "service/registry")
        for path in ([ROOT / folder] if folder.endswith(".py") else sorted((ROOT / folder).rglob("*.py")))
    )
    assert {name for name in named if name not in source} == set()
