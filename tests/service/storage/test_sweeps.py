"""What sweeps remove once nobody needs it any more: scratch folders and stored answers."""

from pathlib import Path

import pytest
from httpx import Response
from sqlalchemy import text

from service.config import get_settings
from service.db import engine_for, session_scope
from tests.scenes import World
from workers import workspace
from workers.housekeeping import sweep_answers, sweep_work_folders


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder of this test's own."""
    settings = get_settings().model_copy(update={"work_dir": tmp_path})
    monkeypatch.setattr(workspace, "get_settings", lambda: settings)
    return tmp_path


def set_state(update: str, state: str, *, fence: int) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        session.execute(
            text("UPDATE updates SET state = :state, fence = :fence WHERE id = :id"),
            {"id": update, "state": state, "fence": fence},
        )


def test_what_a_crashed_attempt_left_goes_while_its_update_waits_for_approval(
    world: World, work_dir: Path
) -> None:
    world.model()
    world.task("one", train=2, held=2)
    update = world.request("one")["id"]
    for fence in "123":
        (work_dir / update / fence).mkdir(parents=True)
        (work_dir / update / fence / "fresh.ndjson").write_text("somebody's text")
    set_state(update, "queued", fence=2)
    assert sweep_work_folders() == 0, "the next attempt takes over the checkpoints"
    set_state(update, "awaiting_approval", fence=2)
    assert sweep_work_folders() == 1
    assert [folder.name for folder in (work_dir / update).iterdir()] == ["3"], "an attempt that just began"
    assert sweep_work_folders() == 0
    set_state(update, "cancelled", fence=3)
    assert sweep_work_folders() == 1
    assert not (work_dir / update).exists()


def test_answers_for_repeats_are_kept_for_seven_days(world: World, database: str) -> None:
    bodies = {
        name: {"name": name, "base_model": "minilm-l6", "task_type": "text-classification"} for name in "ab"
    }

    def send(name: str) -> Response:
        return world.client.post("/v1/models", json=bodies[name], headers={"Idempotency-Key": name})

    for name in bodies:
        world.ok(send(name))
    assert sweep_answers() == 0
    with engine_for(database).begin() as connection:
        connection.execute(text("SET LOCAL ROLE palimpsest_owner"))
        for name, days in (("a", 6), ("b", 8)):
            connection.execute(
                text(
                    "UPDATE idempotency_keys SET created_at = now() - make_interval(days => :days) WHERE key = :key"
                ),
                {"days": days, "key": name},
            )
    assert sweep_answers() == 1
    assert send("a").headers["Idempotent-Replayed"] == "true"
    assert world.problem(send("b")) == (409, "model_exists")
