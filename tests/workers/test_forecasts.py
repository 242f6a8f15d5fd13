"""Forecasts: real probes of real updates, held against what the model's past updates came to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import text

from service.db import EVERY_TENANT, session_scope
from service.forecasts.leases import FORECASTS
from service.forecasts.queries import find_past, get_forecast
from service.models import Forecast, ForecastProbe, Update, Version
from service.registry.queries import get_model, get_version
from service.storage.queries import is_busy, live_versions
from tests.conftest import emptied
from tests.scenes import World, make_client
from workers import forecasts
from workers.child import Trainer
from workers.forecasts import RowsGone, require_its_rows
from workers.tasks import run_next_forecast
from workers.training.errors import Cancelled, TrainingFailed

pytestmark = pytest.mark.slow  # every forecast trains a probe or two

FORGETFUL: dict[str, Any] = {
    "strategy": {"name": "sequential"},
    "training": {**World.TRAINING, "epochs": 8},
}
TASKS = {
    "one": ("math", "os"), "two": ("random", "socket"), "three": ("string", "shutil"), "four": ("logging", "inspect"),
    "five": ("threading", "subprocess"), "next": ("statistics", "tempfile"),
}  # fmt: skip
FORECASTS_OF = "/v1/models/triage/updates:forecast"


def set_up(database_url: str, *learnt: str) -> World:
    """A model that learnt these tasks one after the other without rehearsal, and another task to learn."""
    emptied(database_url)
    world = World(make_client("acme"))
    world.model(gate={"max_regression": 0.5})
    for name in (*learnt, "next"):
        world.task(name, TASKS[name], train=8, held=6)
    for name in learnt:
        world.learn(name, **FORGETFUL)
    return world


@pytest.fixture(scope="module")
def world(database_url: str, redis_url: str) -> Iterator[World]:
    """A model with one past update that could forget anything."""
    yield set_up(database_url, "one", "two")
    emptied(database_url)


@pytest.fixture(scope="module")
def forecast(world: World) -> dict[str, Any]:
    """What it is told of another one."""
    return world.forecast("next", **FORGETFUL)


def stored_probes() -> dict[str, Any]:
    """Every probe of a past update, with the time it was made."""
    with session_scope(tenant="acme") as session:
        return {row.update_id: row.created_at for row in session.scalars(sa.select(ForecastProbe))}


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The updates, or forecasts, that are probed from here on."""
    found: list[str] = []
    probe = Trainer.probe

    def note(trainer: Trainer, request: Any, **others: Any) -> Any:
        found.append(request.lineage["update"])
        return probe(trainer, request, **others)

    monkeypatch.setattr(Trainer, "probe", note)
    return found


def test_a_forecast_is_asked_for_by_post_and_read_where_location_says(world: World) -> None:
    asked = world.client.post(FORECASTS_OF, json={"tasks": ["next"], "training": World.TRAINING})
    found = asked.json()
    assert (asked.status_code, asked.headers["Location"]) == (202, f"/v1/forecasts/{found['id']}")
    assert (found["status"], found["forecast"], found["parent_version"]) == ("queued", None, 2)
    assert (found["probe_fraction"], found["level"]) == (0.05, 0.8)
    assert run_next_forecast()
    assert not run_next_forecast()
    done = world.get(f"/forecasts/{found['id']}")
    assert (done["status"], done["error"], done["progress"]) == ("done", None, None)
    assert world.get("/models/triage/forecasts")["data"][0] == done


def test_it_tells_every_task_learnt_before_and_what_it_was_made_from(
    world: World, forecast: dict[str, Any]
) -> None:
    result = forecast["forecast"]
    assert [(task["task"], task["role"]) for task in result["tasks"]] == [("one", "old"), ("two", "old")]
    stored = {score["task"]: score for score in world.get("/models/triage/versions/2")["scores"]}
    for task in result["tasks"]:
        assert task["parent_score"] == stored[task["task"]]["score"]
        assert task["eval_size"] == task["probed_rows"] == stored[task["task"]]["eval_size"]
        assert task["forgetting"] == -task["predicted_change"]
        assert task["signs"]["label_overlap"] == 0, "the next task's labels are its own"
        assert task["signs"]["new_loss"] > 1, "the parent has never seen them"
        assert task["signs"]["likelihood_change"] != 0, "even a few steps move something"
    costs = result["costs"]
    assert (costs["fresh_rows"], costs["probe_steps"], costs["total_steps"]) == (16, 8, 16)
    assert 0 < costs["training_seconds"] < 600


def test_with_too_few_past_updates_it_says_so_and_gives_no_interval(forecast: dict[str, Any]) -> None:
    result = forecast["forecast"]
    assert not result["calibrated"]
    assert {(task["interval"], task["past_updates"]) for task in result["tasks"]} == {(None, 1)}
    assert "1 past updates" in result["summary"]
    assert "4 are needed at 80%" in result["summary"]
    assert [(past["version"], past["strategy"]) for past in result["past"]] == [(2, "sequential")]


def test_what_past_updates_changed_is_read_from_their_stored_scores(
    world: World, forecast: dict[str, Any]
) -> None:
    report = world.get("/models/triage/versions/2/report")
    (old,) = (task for task in report["tasks"] if task["role"] == "old")
    assert forecast["forecast"]["past"][0]["mean_change"] == pytest.approx(old["delta"])


def test_nothing_is_registered_and_nothing_moves(world: World, forecast: dict[str, Any]) -> None:
    with session_scope(tenant="acme") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Version)) == 3
    model = world.get("/models/triage")
    assert (model["champion"], model["counts"]["versions"], model["active_update"]) == (2, 2, None)
    assert world.get("/models/triage/updates")["data"][0]["version"] == 2


def test_past_updates_are_probed_once(world: World, forecast: dict[str, Any], probed: list[str]) -> None:
    before = stored_probes()
    assert len(before) == 1, "the first update had nothing to forget"
    again = world.forecast("next", **FORGETFUL)
    assert stored_probes() == before
    assert probed == [again["id"]]
    measured = [[task["signs"] for task in one["forecast"]["tasks"]] for one in (forecast, again)]
    assert measured[0] == measured[1], "same seed, same data: the same probe"


def test_whoever_takes_a_forecast_over_repeats_no_probe(
    world: World, forecast: dict[str, Any], probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing in a worker outlives it."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    asked = world.ok(world.client.post(FORECASTS_OF, json={"tasks": ["next"], **FORGETFUL}))
    with monkeypatch.context() as patch:
        patch.setattr(forecasts, "finish_forecast", die)
        with pytest.raises(Killed):
            run_next_forecast()
    assert world.get(f"/forecasts/{asked['id']}")["status"] == "scoring"
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        session.execute(text("UPDATE forecasts SET lease_expires_at = now() - interval '1 second'"))
        assert FORECASTS.sweep(session) == [asked["id"]]
    assert run_next_forecast()
    done = world.get(f"/forecasts/{asked['id']}")
    assert (done["status"], done["attempt"], probed) == ("done", 2, [asked["id"]])


def test_what_cannot_be_forecast_is_refused(world: World) -> None:
    for strategy in ("joint", "analytic", "auto"):
        answer = world.client.post(FORECASTS_OF, json={"tasks": ["next"], "strategy": {"name": strategy}})
        assert world.problem(answer) == (422, "strategy_not_forecast")
    answer = world.client.post(FORECASTS_OF, json={"tasks": ["one"]})
    assert world.problem(answer) == (422, "nothing_to_learn")
    assert world.problem(world.client.post(FORECASTS_OF, json={"tasks": ["next"], "level": 0.99}))[0] == 422
    assert world.problem(world.client.get("/v1/forecasts/fct_none")) == (404, "forecast_not_found")
    reader = make_client("acme", "read")
    assert world.problem(reader.post(FORECASTS_OF, json={"tasks": ["next"]})) == (403, "missing_scope")


def test_from_the_base_there_is_nothing_to_forget(world: World) -> None:
    result = world.forecast("next", parent=0)["forecast"]
    assert (result["tasks"], result["past"]) == ([], [])
    assert result["summary"] == "Nothing that was learnt before could be forgotten."
    assert result["costs"]["total_steps"] == 4


def test_a_task_that_is_taught_again_is_told_apart(world: World, forecast: dict[str, Any]) -> None:
    result = world.forecast("next", "one", relearn=True, **FORGETFUL)["forecast"]
    roles = {task["task"]: (task["role"], task["past_updates"]) for task in result["tasks"]}
    assert roles == {"one": ("relearnt", 0), "two": ("old", 1)}


def test_what_ended_after_the_forecast_was_asked_for_is_no_past_of_it(world: World) -> None:
    done = world.forecast("next", **FORGETFUL)
    with session_scope(tenant="acme") as session:
        model, forecast = get_model(session, model="triage"), get_forecast(session, forecast_id=done["id"])
        assert [update.version for update in find_past(session, model=model, forecast=forecast)] == [2]
        session.expunge(forecast)
        forecast.requested_at = get_version(session, model=model, version=1).created_at
        assert find_past(session, model=model, forecast=forecast) == []


def test_a_past_update_that_fails_costs_its_lesson_and_not_the_forecast(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Trainer.probe

    def fail_the_past(trainer: Trainer, request: Any, **others: Any) -> Any:
        if request.lineage["update"].startswith("upd_"):
            raise TrainingFailed("too_few_devices", "it wants two devices, there is one")
        return probe(trainer, request, **others)

    monkeypatch.setattr(Trainer, "probe", fail_the_past)
    found = world.forecast("next", **FORGETFUL, probe_fraction=0.2)
    assert (found["status"], found["attempt"]) == ("done", 1)
    assert [entry["reason"] for entry in found["forecast"]["skipped"]] == [
        "it wants two devices, there is one"
    ]


def test_a_past_update_whose_rows_are_gone_is_not_probed(world: World, tmp_path: Path) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        model = get_model(session, model="triage")
        update = session.scalars(sa.select(Update).where(Update.version == 2)).one()
    fresh = tmp_path / "fresh.ndjson"
    for rows, gone in ((16, False), (15, True)):
        fresh.write_text("{}\n" * rows)
        if not gone:
            require_its_rows(model, update, fresh=fresh)
            continue
        with pytest.raises(RowsGone, match="Only 15 of the 16 rows"):
            require_its_rows(model, update, fresh=fresh)


def test_updates_that_wait_go_first_after_every_probe(world: World, probed: list[str]) -> None:
    asked = world.ok(
        world.client.post(FORECASTS_OF, json={"tasks": ["next"], **FORGETFUL, "probe_fraction": 0.3})
    )
    update = world.request("next", **FORGETFUL)["id"]
    assert run_next_forecast()
    forecast = world.get(f"/forecasts/{asked['id']}")
    assert (forecast["status"], forecast["attempt"], len(probed)) == ("queued", 1, 1)
    world.ok(world.client.post(f"/v1/updates/{update}/cancel"))
    assert run_next_forecast()
    assert world.get(f"/forecasts/{asked['id']}")["status"] == "done"
    assert len(probed) == 2, "its own is not made again"


def test_a_cancel_stops_the_probe_under_way_and_leaves_nothing_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_by: list[type[BaseException]] = []
    cancelled: dict[str, Any] = {}
    probe = Trainer.probe

    def cancel_once_it_trains(trainer: Trainer, request: Any, *, on_progress: Any, watch: Any) -> Any:
        def report(progress: Any) -> None:
            nonlocal cancelled
            on_progress(progress)
            if progress.step > 0 and not cancelled:
                cancelled = world.ok(world.client.post(f"/v1/forecasts/{asked['id']}/cancel"))
                assert (cancelled["status"], cancelled["progress"]) == ("cancelled", None)

        try:
            return probe(trainer, request, on_progress=report, watch=watch)
        except BaseException as error:
            ended_by.append(type(error))
            raise

    monkeypatch.setattr(Trainer, "probe", cancel_once_it_trains)
    before = stored_probes()
    long = {**FORGETFUL, "training": {**World.TRAINING, "epochs": 1000}}  # its probe alone would take minutes
    asked = world.ok(world.client.post(FORECASTS_OF, json={"tasks": ["next"], **long, "probe_fraction": 0.5}))
    assert run_next_forecast()
    found = world.get(f"/forecasts/{asked['id']}")
    assert (found["status"], found["forecast"], found["error"]) == ("cancelled", None, None)
    assert ended_by == [Cancelled]
    assert stored_probes() == before
    with session_scope(tenant="acme") as session:
        assert get_forecast(session, forecast_id=asked["id"]).probe is None
    assert not run_next_forecast(), "nobody takes it up again"


def test_rows_that_a_forecast_waits_to_read_stay(world: World) -> None:
    with session_scope(tenant="acme") as session:
        model = get_model(session, model="triage")
        assert not is_busy(session, model=model)
    world.ok(world.client.post(FORECASTS_OF, json={"tasks": ["next"], **FORGETFUL}))
    with session_scope(tenant="acme", role="worker") as session:
        assert is_busy(session, model=model)
        assert 2 in live_versions(session, model=model, newest=0).versions
    assert run_next_forecast()


def test_a_past_update_whose_parent_is_gone_is_skipped_and_named(world: World) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        session.execute(sa.text("UPDATE versions SET artifact_removed_at = now() WHERE number = 1"))
    result = world.forecast("next", **FORGETFUL, probe_fraction=0.4)["forecast"]
    assert result["past"] == []
    past = [update["id"] for update in world.get("/models/triage/updates")["data"] if update["version"] == 2]
    assert [entry["update"] for entry in result["skipped"]] == past
    assert "version 1" in result["skipped"][0]["reason"]


def test_what_fails_for_good_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrainingFailed("non_finite_loss", "the loss at step 3 is nan")

    monkeypatch.setattr(Trainer, "probe", fail)
    found = world.forecast("next")
    assert (found["status"], found["error"]["code"], found["forecast"]) == ("failed", "non_finite_loss", None)


@pytest.mark.timeout(900)  # it trains five updates, and probes them all
def test_a_model_with_past_updates_enough_gets_intervals_at_its_first_forecast(
    database_url: str, redis_url: str
) -> None:
    world = set_up(database_url, "one", "two", "three", "four", "five")
    result = world.forecast("next", **FORGETFUL)["forecast"]
    assert result["calibrated"]
    assert [past["version"] for past in result["past"]] == [5, 4, 3, 2]
    assert "calibrated on 4 past updates" in result["summary"]
    assert {task["past_updates"] for task in result["tasks"]} == {4}
    for task in result["tasks"]:
        low, high = task["interval"]
        assert low <= task["predicted_change"] <= high
        assert -task["parent_score"] <= low <= high <= 1 - task["parent_score"]
    strict = world.forecast("next", **FORGETFUL, level=0.9)["forecast"]
    assert (strict["calibrated"], "9 are needed at 90%" in strict["summary"]) == (False, True)
    world.client.delete("/v1/models/triage")
    world.ok(world.client.post("/v1/models/triage/purge"))
    with session_scope(tenant="acme") as session:
        for table in (Forecast, ForecastProbe):
            assert session.scalar(sa.select(sa.func.count()).select_from(table)) == 0
