"""The soak: it runs, and its ledger notices what is lost and what is there twice."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.soak.ledger import (
    Finding,
    decisions,
    differences,
    ends_of,
    history,
    missing_and_unknown,
    numbers_of,
)
from bench.soak.load import Asked, Place

ROOT = Path(__file__).parents[2]
OURS = ("DATABASE_URL", "REDIS_URL", "ARTIFACT_URL", "PALIMPSEST_")  # the soak has parts of its own
PLACE = Place("default", "one")


def row(**changes: Any) -> dict[str, Any]:
    """An update as the database shows it, promoted without a fault."""
    sound = {
        "id": "upd_1", "state": "promoted", "metadata": {}, "error": None, "version": 1, "yielded": 1, "versions": 1,
        "worker": None, "lease_expires_at": None, "attempts_used": 0, "max_attempts": 25,
        "events": ["queued", "training", "evaluating", "promoted"],
    }  # fmt: skip
    return {**sound, **changes}


def kinds(findings: Any) -> list[str]:
    """Which kinds of findings there are."""
    return [finding.kind for finding in findings]


def test_an_update_that_ended_as_it_should_balances() -> None:
    assert list(ends_of(row())) == []
    assert list(missing_and_unknown([Asked("upd_1", "key", PLACE)], [row()])) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "training", "events": ["queued", "training"]},
        {"state": "failed", "events": ["queued", "training", "failed"], "version": None, "yielded": None},
        {"worker": "worker-1"},
        {"version": None},
        {"yielded": None, "versions": 0},
    ],
    ids=["never ended", "failed with attempts left", "still held", "version not named", "version not there"],
)
def test_an_update_that_is_not_done_is_lost(changes: dict[str, Any]) -> None:
    assert set(kinds(ends_of(row(**changes)))) == {"lost"}


@pytest.mark.parametrize(
    "changes",
    [{"versions": 2}, {"events": ["queued", "training", "rejected", "promoted"]}],
    ids=["two versions", "two ends"],
)
def test_an_update_that_was_done_twice_is_duplicated(changes: dict[str, Any]) -> None:
    assert kinds(ends_of(row(**changes))) == ["duplicated"]


def test_an_accepted_update_must_be_there_and_no_other() -> None:
    asked = [Asked("upd_1", "a", PLACE), Asked("upd_2", "b", PLACE)]
    assert kinds(missing_and_unknown(asked, [row()])) == ["lost"]
    assert kinds(missing_and_unknown(asked[:1], [row(), row(id="upd_2")])) == ["duplicated"]


def test_an_acknowledged_decision_must_hold() -> None:
    asked = Asked("upd_1", "a", PLACE, word="cancelled")
    assert kinds(decisions([asked], [row()])) == ["lost"]
    assert list(decisions([asked], [row(state="cancelled")])) == []


def test_numbers_have_no_gap_and_history_leads_to_the_aliases() -> None:
    model = {"id": "m", "name": "one", "last_version": 2, "numbers": [1, 2], "aliases": {"champion": 2}}
    moves = [
        {"model_id": "m", "alias": "champion", "from_version": before, "to_version": after}
        for before, after in ((None, 0), (0, 1), (1, 2))
    ]
    assert [*numbers_of(model), *history([model], moves)] == []
    assert kinds(numbers_of({**model, "numbers": [2]})) == ["lost"]
    assert kinds(history([model], [moves[0], moves[2]])) == ["lost"]
    assert kinds(history([model], moves[:2])) == ["lost"]


def test_a_row_stored_twice_and_a_row_not_stored_are_told_apart() -> None:
    found = list(differences(Counter(["a", "b"]), Counter(["b", "b"]), "row"))
    assert found == [
        Finding("lost", "row a was acknowledged and is not there"),
        Finding("duplicated", "row b is there beyond what was acknowledged"),
    ]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_short_soak_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    figures = tmp_path / "soak.json"
    command = [sys.executable, "-m", "bench.soak", "--minutes", "0.3", "--kills-per-minute", "12"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    run = subprocess.run(
        [*command, "--workers", "2", "--json", str(figures)], env=environment, cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=840,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(figures.read_text())
    counted = told["figures"]
    assert (counted["lost"], counted["duplicated"]) == (0, 0)
    assert counted["accepted"] == sum(
        counted[end] for end in ("promoted", "rejected", "failed", "cancelled")
    ) > 0  # fmt: skip
    assert sum(told["faults"].values()) > 0
