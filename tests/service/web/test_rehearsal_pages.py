"""What a version's page says of its rehearsal: of every row exactly what became of it, and nothing of a buffer too large to read."""

from typing import Any

import pytest

from service.db import session_scope
from service.models import Version
from service.registry.queries import get_model
from service.web.views.rehearsals import MOST_ROWS
from tests.scenes import World
from tests.scored_lineage import Answer, add_version
from tests.service.web.visitors import Browser, visible_text

PAGE = "/ui/models/triage/versions/2"
ROWS = 8


@pytest.fixture
def taught(world: World) -> World:
    """A model whose first version taught eight rows."""
    world.model(replay={"capacity": 24})
    rows = [
        {"id": f"{split}-{turn}", "text": f"{split} {turn}", "label": "ab"[turn % 2], "split": split}
        for split, count in (("train", ROWS), ("eval", 4))
        for turn in range(count)
    ]
    world.ok(world.client.put("/v1/models/triage/tasks/one"))
    world.examples("one", rows)
    answers: dict[str, Answer] = {f"eval-{turn}": ("a", 0.9) for turn in range(4)}
    add_version(1, answers={"one": answers}, learns="one")
    return world


def second(strategy: str = "replay", *, statistics: dict[str, Any] | None = None, **recorded: Any) -> None:
    """Adds version 2, which says this of its training and of the buffer that it read."""
    with session_scope(tenant="acme", role="worker") as session:
        model = get_model(session, model="triage")
        session.add(
            Version(
                tenant_id="acme", model_id=model.id, number=2, parent=1, lineage=[0, 1, 2], strategy=strategy,
                parameters={"fraction": 0.5}, training={}, cut=model.last_batch, labels=["a", "b"],
                statistics={"fresh_rows": 5, **(statistics or {})},
                provenance={"replay": {"boost": "none", "capacity": 24, **recorded}},
            )
        )  # fmt: skip
        model.last_version = 2


def rehearsal(browser: Browser) -> str:
    """The page's words on what was rehearsed."""
    text = visible_text(browser.read(PAGE))
    return text[text.index("What was rehearsed") : text.index("Dial between")]


@pytest.mark.parametrize(
    ("statistics", "recorded"), [({}, {}), ({"replay_rows": 900_000}, {}), ({}, {"rows": MOST_ROWS + 1})]
)
def test_a_large_buffer_is_not_read_for_a_page(
    taught: World, browser: Browser, statistics: dict[str, int], recorded: dict[str, Any]
) -> None:
    second(statistics=statistics, capacity=1_000_000, **recorded)
    words = rehearsal(browser)
    assert "too large to be read again for a page" in words
    assert "as 50.0 % of the mix" in words
    assert "room for 1000000" in words
    assert "By task" not in words
    refused = browser.get(f"{PAGE}/rehearsed.csv")
    assert refused.status_code == 422
    assert "too large to be counted again" in refused.text


def test_a_buffer_with_few_rows_is_read_however_many_it_has_room_for(taught: World, browser: Browser) -> None:
    second(capacity=1_000_000, rows=ROWS, statistics={"replay_rows": ROWS})
    assert f"By task: one {ROWS}." in rehearsal(browser)
    assert browser.get(f"{PAGE}/rehearsed.csv").status_code == 200


@pytest.mark.parametrize("recorded", [{"rows": ROWS}, {}])
def test_rows_that_were_held_out_of_training_were_not_removed(
    taught: World, browser: Browser, recorded: dict[str, Any]
) -> None:
    second("merge", statistics={"replay_rows": ROWS - 2}, **recorded)
    words = rehearsal(browser)
    assert f"The buffer held {ROWS} rows" in words
    assert f"{ROWS - 2} of its rows were trained on, 2 held out." in words
    assert "removed" not in words


def test_rows_that_are_missing_are_said_to_have_been_removed(taught: World, browser: Browser) -> None:
    second(statistics={"replay_rows": ROWS + 3}, rows=ROWS + 3)
    words = rehearsal(browser)
    assert "3 rows were removed since, by an erasure or by retention" in words
    assert f"the table shows the {ROWS} that stand there now" in words
    assert "held out" not in words


def test_rows_that_only_gave_a_direction_are_not_said_to_be_trained_on(
    taught: World, browser: Browser
) -> None:
    second("agem", statistics={"replay_rows": ROWS}, rows=ROWS)
    words = rehearsal(browser)
    assert "agem learnt from 5 new rows alone" in words
    assert "were not fitted" in words
    assert "mixed rows" not in words
