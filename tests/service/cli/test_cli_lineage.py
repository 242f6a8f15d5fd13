"""Versions, reports, history and the gate of a lineage from the command line; nothing is changed but at the end."""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import emptied
from tests.scenes import World, make_client
from tests.service.cli.conftest import Result, key_of, run

pytestmark = pytest.mark.slow  # three updates have to be trained

SHORT: dict[str, Any] = {
    "training": {**World.TRAINING, "max_steps": 1, "repeats": 2},
    "promotion": "manual",
    "relearn": True,
}


@dataclass(frozen=True)
class Lineage:
    """A model that learnt two tasks, the second one without rehearsing the first; one more candidate is held."""

    world: World
    environment: dict[str, str]
    held: str

    def palimpsest(self, *arguments: object, **environment: str) -> Result:
        """Runs a command on it."""
        return run(*arguments, **{**self.environment, **environment})


@pytest.fixture(scope="module")
def lineage(database_url: str, redis_url: str, api_port: int) -> Iterator[Lineage]:
    emptied(database_url)
    client = make_client("acme")
    world = World(client)
    world.model()
    world.task("one")
    world.task("two", ("random", "socket"))
    forgetful = {"strategy": {"name": "sequential"}, "training": {**World.TRAINING, "epochs": 6}}
    world.request("one", **forgetful)
    world.request("two", **forgetful)
    held = world.request("one", **SHORT)["id"]
    world.work()
    environment = {"PALIMPSEST_URL": f"http://127.0.0.1:{api_port}", "PALIMPSEST_API_KEY": key_of(client)}
    yield Lineage(world, environment, held)
    emptied(database_url)


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("version list triage", "/models/triage/versions"),
        ("version show triage", "/models/triage/versions/2"),
        ("version show triage 1", "/models/triage/versions/1"),
        (
            "version flips triage --kind negative --task one",
            "/models/triage/versions/2/flips?kind=negative&task=one",
        ),
        (
            "version flips triage --min-confidence 0.1 --min-flips 1 --sort flips",
            "/models/triage/versions/2/flips?min_confidence=0.1&min_flips=1&sort=flips",
        ),
        ("version flips triage 2 --against 0", "/models/triage/versions/2/flips?against=0&limit=100"),
        ("report show triage champion", "/models/triage/versions/2/report"),
        ("report matrix triage", "/models/triage/reports/forgetting"),
        ("report matrix triage --version 1", "/models/triage/reports/forgetting?version=1"),
        ("history triage", "/models/triage/history"),
        ("aliases triage", "/models/triage/aliases"),
        ("update list triage", "/models/triage/updates"),
        ("update list triage --status promoted", "/models/triage/updates?status=promoted"),
        ("storage", "/storage"),
    ],
)
def test_json_is_exactly_what_the_api_answers(lineage: Lineage, command: str, path: str) -> None:
    result = lineage.palimpsest(*command.split(), "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json == lineage.world.get(path)


def test_versions_are_listed_with_verdict_and_alias_and_shown_with_their_scores(lineage: Lineage) -> None:
    listed = lineage.palimpsest("version", "list", "triage").out.splitlines()
    assert len(listed) == 5, "a heading, the base, two that learnt and one that is held"
    assert "champion" in listed[3]
    assert "✗ fail" in listed[3] or "? inconclusive" in listed[3]
    shown = lineage.palimpsest("version", "show", "triage").out
    assert "0 → 1 → 2" in shown
    assert "eval examples" in shown


def test_a_report_shows_change_bounds_flips_and_the_verdict_in_words(lineage: Lineage) -> None:
    report = lineage.world.get("/models/triage/versions/2/report")
    shown = lineage.palimpsest("report", "show", "triage", "2").out
    old = next(task for task in report["tasks"] if task["task"] == "one")
    assert f"{old['delta']:+.3f}" in shown
    assert f"{old['delta_ci'][0]:+.3f} … {old['delta_ci'][1]:+.3f}" in shown
    assert f"−{old['flips']['negative']} +{old['flips']['positive']}" in shown
    for reason in report["verdict"]["reasons"]:
        assert reason["detail"][:40] in " ".join(shown.split())


def test_a_report_shows_what_another_seed_gives_beside_the_change(lineage: Lineage) -> None:
    report = lineage.world.get("/models/triage/versions/3/report")
    shown = " ".join(lineage.palimpsest("report", "show", "triage", "3").out.split())
    assert "other seeds" in shown
    for task in report["tasks"]:
        change = task["noise"]["change"]
        assert (
            f"{change['mean']:+.3f} {change['mean_interval'][0]:+.3f} … {change['mean_interval'][1]:+.3f}"
            in shown
        )
    over_seeds = report["noise"]["summary"]["average_accuracy"]["sd"]
    assert f"{report['summary']['average_accuracy']:.3f} ± {over_seeds:.3f} over seeds" in shown
    assert "other seeds" not in lineage.palimpsest("report", "show", "triage", "2").out


def test_a_version_shows_in_one_line_what_other_seeds_gave(lineage: Lineage) -> None:
    report = lineage.world.get("/models/triage/versions/3/report")
    score = report["summary"]["average_accuracy"]
    over_seeds = report["noise"]["summary"]["average_accuracy"]["sd"]
    shown = " ".join(lineage.palimpsest("version", "show", "triage", "3").out.split())
    assert (
        f"other seeds average accuracy {score:.3f} ± {over_seeds:.3f} over seeds: 2 seeds of the same"
        in shown
    )
    assert "other seeds" not in lineage.palimpsest("version", "show", "triage", "2").out


def test_flips_are_shown_with_both_answers(lineage: Lineage) -> None:
    page = lineage.world.get("/models/triage/versions/2/flips?kind=negative")
    assert page["data"], "a model that rehearses nothing forgets"
    shown = lineage.palimpsest("version", "flips", "triage", "--kind", "negative").out
    assert "version 1" in shown.splitlines()[0]
    first = page["data"][0]
    assert f"{first['before']['label']} {first['before']['confidence']:.0%}" in shown


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_flips_are_written_to_a_file_as_the_api_exports_them(
    lineage: Lineage, tmp_path: Path, form: str
) -> None:
    file = tmp_path / f"flips.{form}"
    result = lineage.palimpsest("version", "flips", "triage", "--kind", "negative", "-o", str(file))
    assert result.code == 0
    assert str(file) in result.out
    exported = lineage.world.client.get(f"/v1/models/triage/versions/2/flips?kind=negative&format={form}")
    assert file.read_bytes() == exported.content
    assert len(file.read_text().splitlines()) > 1


def test_flips_go_to_no_file_of_another_form(lineage: Lineage, tmp_path: Path) -> None:
    result = lineage.palimpsest("version", "flips", "triage", "-o", str(tmp_path / "flips.xlsx"))
    assert (result.code, list(tmp_path.iterdir())) == (1, [])
    assert "must end in .csv or .ndjson" in result.err


def test_the_matrix_holds_the_number_of_every_cell_and_marks_what_was_learnt(lineage: Lineage) -> None:
    report = lineage.world.get("/models/triage/reports/forgetting")
    shown = lineage.palimpsest("report", "matrix", "triage").out
    rows = {line.split()[0]: line for line in shown.splitlines()[1:4]}
    for version, row in zip(report["versions"], report["matrix"], strict=True):
        for score in row:
            assert ("–" if score is None else f"{score:.2f}") in rows[str(version)]
    assert f"{report['matrix'][1][0]:.2f}•" in rows["1"]
    assert f"{report['matrix'][2][1]:.2f}•" in rows["2"]
    assert "average accuracy" in shown


def test_the_matrix_is_coloured_where_colours_are_shown(lineage: Lineage) -> None:
    shown = lineage.palimpsest(
        "report",
        "matrix",
        "triage",
        NO_COLOR="",
        FORCE_COLOR="1",
        COLORTERM="truecolor",
        TERM="xterm-256color",
    ).out
    assert "\x1b[38;2;" in shown
    assert ";48;2;" in shown


def test_an_adapter_is_downloaded_whole_and_never_over_another_file(lineage: Lineage, tmp_path: Path) -> None:
    target = tmp_path / "adapter.tar"
    got = lineage.palimpsest("version", "download", "triage", "2", "-o", target, "--json")
    stored = lineage.world.get("/models/triage/versions/2")["artifact"]
    assert got.json == {"path": str(target), **stored}
    assert hashlib.sha256(target.read_bytes()).hexdigest() == stored["sha256"]
    with tarfile.open(target) as tar:
        assert any(name.endswith("adapter_model.safetensors") for name in tar.getnames())
    again = lineage.palimpsest("version", "download", "triage", "2", "-o", target)
    assert (again.code, "--force" in again.err) == (1, True)
    assert lineage.palimpsest("version", "download", "triage", "-o", target, "--force").code == 0
    base = lineage.palimpsest("version", "download", "triage", "0", "-o", tmp_path / "base.tar")
    assert (base.code, "[no_adapter, at version]" in base.err) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.tar"]


def test_another_policy_is_tried_on_past_updates(lineage: Lineage) -> None:
    tried = lineage.palimpsest(
        "gate", "simulate", "triage", "--max-regression", "1", "--version", "2", "--json"
    ).json
    assert [(one["version"], one["outcome"]) for one in tried["data"]] == [(2, "promote")]
    shown = lineage.palimpsest(
        "gate", "simulate", "triage", "--on-inconclusive", "reject", "--confidence", "0.9"
    ).out
    assert "policy" in shown
    assert "reject" in shown


def test_an_update_is_shown_with_its_verdict_and_its_events(lineage: Lineage) -> None:
    shown = lineage.palimpsest("update", "show", lineage.held).out
    assert "awaiting_approval" in shown
    assert "because" in shown
    assert lineage.palimpsest("update", "show", lineage.held, "--json").json["id"] == lineage.held
    events = lineage.palimpsest("update", "events", lineage.held).out
    assert [
        word for word in ("queued", "training", "evaluating", "awaiting_approval") if word not in events
    ] == []
    assert lineage.held in lineage.palimpsest("update", "list", "triage", "--status", "awaiting_approval").out
    waiting = lineage.palimpsest("update", "watch", lineage.held)
    assert waiting.code == 5
    assert f"palimpsest update approve {lineage.held}" in waiting.out


def test_a_candidate_is_approved_and_the_champion_goes_back(lineage: Lineage) -> None:
    assert (
        "is champion" in lineage.palimpsest("update", "approve", lineage.held, "--reason", "looks fine").out
    )
    assert lineage.palimpsest("update", "reject", lineage.held).code == 1, "it is decided"
    back = lineage.palimpsest("rollback", "triage", "--reason", "complaints")
    assert back.out.startswith("The champion of 'triage' is version 2; it was 3.")
    to = lineage.palimpsest("rollback", "triage", "--reason", "further", "--to", "1", "--json")
    assert (to.json["champion"], to.json["reason"]) == (1, "further")
    history = lineage.palimpsest("history", "triage").out
    assert "looks fine" in history
    assert "complaints" in history
    assert "champion" in lineage.palimpsest("aliases", "triage").out
