"""Random lives over the real API and database, few and always the same in the quick run, many and new in the long one.

The long one prints how to repeat what it finds, and fails as well when its lives were too shallow to find anything.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from service.config import get_settings
from tests.faults.lives import HOURS, Lives, row
from tests.faults.stepped_worker import Recording, step_pipeline
from workers.training.contract import AdapterSettings, BaseFolder, TrainingSettings, TrainRequest
from workers.training.loop import train

Run = Callable[..., Counter[str]]
# What must have happened in the long run, by the first words of the tally, and how often at least: a third or less of
# what does, for lives resemble each other and counts vary widely.
ENOUGH = {
    "killed at": 15, "late alone": 8, "late after a successor": 5, "came with scores too late": 2,
    "lease expired": 20, "cancel: ": 8, "cancel: training": 1, "approve: promoted": 8, "approve: verdict_stale": 1,
    "reject: rejected": 1, "rolled back": 7, "scored again": 1, "ended failed": 1,
}  # fmt: skip
MOST_ROUNDS = 3  # of lives, while something has happened too seldom


@pytest.fixture(scope="session")
def recording(tiny: BaseFolder, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """One real training of a tiny encoder with a strategy that leaves state."""
    folder = tmp_path_factory.mktemp("recording")
    fresh = folder / "fresh.ndjson"
    fresh.write_text("".join(json.dumps(row(n, 0) | {"id": n, "task": "one"}) + "\n" for n in range(8)))
    asked = TrainRequest(
        task_type="text-classification", base=tiny, strategy="ewc", labels=("a", "b"), fresh=str(fresh),
        output=str(folder / "version"), checkpoints=str(folder / "checkpoints"),
        adapter=AdapterSettings(r=2, alpha=4.0),
        settings=TrainingSettings(max_steps=2, max_length=16, batch_size=4),
    )  # fmt: skip
    result = train(asked, on_progress=lambda _: None, should_stop=lambda: None)
    return Recording(strategy="ewc", folder=folder / "version", result=result)


@pytest.fixture
def run(client: TestClient, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the machine with Hypothesis settings; returns how often what happened."""
    monkeypatch.setenv("PALIMPSEST_LEASE_SECONDS", str(HOURS))
    get_settings.cache_clear()
    step_pipeline(monkeypatch)

    def run_(**chosen: Any) -> Counter[str]:
        tally: Counter[str] = Counter()
        profile = settings(deadline=None, suppress_health_check=list(HealthCheck), **chosen)
        run_state_machine_as_test(lambda: Lives(client, recording, tally), settings=profile)
        print("\n".join(f"{count:5} {what}" for what, count in sorted(tally.items())))
        return tally

    with client:
        yield run_
    monkeypatch.undo()
    get_settings.cache_clear()


def happened(tally: Counter[str], what: str) -> int:
    """How often something happened whose name begins with `what`."""
    return sum(count for name, count in tally.items() if name.startswith(what))


def test_no_life_of_a_few_steps_breaks_an_invariant(run: Run) -> None:
    # Not shrunk when it fails: that takes minutes.
    tally = run(
        max_examples=5, stateful_step_count=35, derandomize=True, database=None, phases=[Phase.generate]
    )
    for what in (
        "killed at",
        "late",
        "lease expired",
        "cancel: ",
        "approve: promoted",
    ):
        assert happened(tally, what), f"these lives are too shallow: nothing {what}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_long_life_breaks_an_invariant(run: Run) -> None:
    tally: Counter[str] = Counter()
    for _ in range(MOST_ROUNDS):
        tally += run(max_examples=18, stateful_step_count=60, print_blob=True)
        rare = {what: (happened(tally, what), least) for what, least in ENOUGH.items()}
        if all(count >= least for count, least in rare.values()):
            return
    raise AssertionError(f"these lives are too shallow: {rare}")
