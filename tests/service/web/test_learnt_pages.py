"""Pages of versions that were really trained: what they rehearsed, their dial, the loss while it goes."""

import csv
import io
import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
from sqlalchemy import update

from service.db import session_scope
from service.models import Update, UpdateState
from tests.conftest import emptied
from tests.scenes import World, make_client
from tests.service.web.visitors import Browser, visible_text

pytestmark = pytest.mark.slow

VERSION = "/ui/models/triage/versions/2"
ASK = "Have it scored"


@pytest.fixture(scope="module")
def world(database_url: str, redis_url: str) -> Iterator[World]:
    """A model that learnt two tasks, the second while it rehearsed six rows of the first."""
    emptied(database_url)
    world = World(make_client("acme"))
    world.model(replay={"capacity": 6})
    world.task("one")
    world.task("two", ("random", "socket"))
    world.learn("one")
    world.learn("two", strategy={"name": "replay", "fraction": 0.25})
    yield world
    emptied(database_url)


@pytest.fixture(scope="module")
def browser(world: World) -> Browser:
    return Browser(world.client)


def table(browser: Browser, name: str) -> list[dict[str, str]]:
    """A table of version 2 as CSV."""
    return list(csv.DictReader(io.StringIO(browser.read(f"{VERSION}/{name}.csv"))))


def test_a_version_says_which_rows_its_update_rehearsed(world: World, browser: Browser) -> None:
    rows = table(browser, "rehearsed")
    assert {(row["task"], row["label"]): int(row["rows"]) for row in rows} == {
        ("one", "math"): 3, ("one", "os"): 3,
    }  # fmt: skip
    assert {float(row["share"]) for row in rows} == {0.5}
    said = visible_text(browser.read(VERSION))
    statistics = world.get("/models/triage/versions/2")["statistics"]
    assert statistics["replay_rows"] == 6
    assert f"Beside {statistics['fresh_rows']} new rows, replay mixed rows of version 1" in said
    assert "as 25.0 % of the mix" in said
    assert "The buffer held 6 rows; it has room for 6." in said


def test_the_rehearsed_rows_are_told_with_texts_of_theirs(world: World, browser: Browser) -> None:
    texts = {row["text"] for row in world.get("/models/triage/tasks/one/examples?limit=100")["data"]}
    samples = re.findall(r'class="sample">([^<]*)<', browser.read(VERSION))
    assert len(set(samples)) == 4  # two of each label
    for sample in samples:
        begun = unescape(sample).removesuffix("...")
        assert any(text.startswith(begun) for text in texts), sample


def test_the_first_version_had_nothing_to_rehearse(browser: Browser) -> None:
    said = visible_text(browser.read("/ui/models/triage/versions/1"))
    assert "Nothing: version 0’s replay buffer held nothing yet." in said


def test_the_dial_is_asked_for_scored_and_drawn(world: World, browser: Browser) -> None:
    assert browser.get(f"{VERSION}/dial.csv").status_code == 404
    assert ASK in browser.read(VERSION)
    reader = Browser(make_client("acme", "read"))
    assert ASK not in reader.read(VERSION)
    assert reader.send_own(f"{VERSION}/dial").status_code == 403
    answer = browser.send_own(f"{VERSION}/dial")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{VERSION}#dial")
    waiting = visible_text(browser.read(VERSION))
    assert "It waits for a worker" in waiting
    assert ASK not in waiting
    assert browser.send_own(f"{VERSION}/dial").status_code == 303  # a second one changes nothing

    dial = world.dial(2)

    points = table(browser, "dial")
    assert [float(row["beta"]) for row in points] == dial["betas"]
    assert [float(row["average_accuracy"] or 0) for row in points] == [
        point["average_accuracy"] for point in dial["points"]
    ]
    scores = {(float(row["beta"]), row["task"]): row for row in table(browser, "dial-scores")}
    for point in dial["points"]:
        for task in point["tasks"]:
            row = scores[point["beta"], task["task"]]
            assert as_number(row["score"]) == task["score"]
            bounds = [as_number(row["score_low"]), as_number(row["score_high"])]
            assert bounds == (task["interval"] or [None, None])
    picture = browser.get(f"{VERSION}/dial.svg").text
    assert picture in browser.read(VERSION)
    assert picture.count("<polyline") == 2
    assert browser.get(f"{VERSION}/dial.png").headers["Content-Type"] == "image/png"


def as_number(cell: str) -> float | None:
    return float(cell) if cell else None


def test_a_blend_rehearsed_nothing(world: World, browser: Browser) -> None:
    world.ok(
        world.client.post("/v1/models/triage/versions/2/blend", json={"beta": 0.5, "promotion": "manual"})
    )
    world.work()
    assert browser.get("/ui/models/triage/versions/3/rehearsed.csv").status_code == 404
    assert 'id="rehearsed"' not in browser.read("/ui/models/triage/versions/3")


def test_the_loss_is_drawn_of_what_was_trained_and_of_what_is_being_trained(
    world: World, browser: Browser
) -> None:
    done = world.get("/models/triage/updates")["data"][-1]
    page = f"/ui/updates/{done['id']}"
    losses = world.get("/models/triage/versions/1")["statistics"]["losses"]
    rows = list(csv.reader(io.StringIO(browser.read(f"{page}/loss.csv"))))[1:]
    assert [[int(step), float(loss)] for step, loss in rows] == losses
    assert browser.get(f"{page}/loss.svg").text in browser.read(page)
    assert browser.get(f"{page}/loss.png").status_code == 200

    queued = world.request("one", relearn=True)["id"]
    assert browser.get(f"/ui/updates/{queued}/loss.svg").status_code == 404
    report(queued, losses=[[1, 0.9], [2, 0.5], [3, 0.25]])
    live = browser.read(f"/ui/updates/{queued}/now")
    assert "Loss curve over 3 steps, from 0.9 to 0.25" in live
    assert browser.get(f"/ui/updates/{queued}/loss.svg").text in live
    assert "losses" not in world.update(queued)["progress"]  # what pages draw is no part of the API


def report(update_id: str, **progress: Any) -> None:
    """Writes progress as the worker that holds the update does."""
    said = {"phase": "training", "step": 3, "total_steps": 9, "loss": 0.25, **progress}
    with session_scope(tenant="acme", role="worker") as session:
        session.execute(
            update(Update)
            .where(Update.id == update_id)
            .values(progress=said, state=UpdateState.TRAINING)
        )  # fmt: skip
