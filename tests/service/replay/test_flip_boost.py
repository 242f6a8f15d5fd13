"""`replay: {"boost": "flips"}`: what the eval examples lost decides which train examples are rehearsed more."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.db import session_scope
from service.registry.queries import get_model
from service.replay.boosts import FlipBoost, flip_boost
from service.replay.queries import read_buffer
from service.replay.quotas import Candidate, select
from tests.scenes import World
from tests.scored_lineage import Answer, add_version
from workers.preparation import Plan, prepare_update

LOST: list[dict[str, dict[str, Answer]]] = [
    {"one": {f"held-{label}-{turn}": (label, 0.9) for label in "abc" for turn in range(4)}},
    # version 2 loses three of four a and one of four b; version 3 wins two a back and loses the last
    {"one": {"held-a-0": ("b", 0.9), "held-a-1": ("b", 0.9), "held-a-2": ("c", 0.9), "held-b-0": ("a", 0.9)}},
    {"one": {"held-a-0": ("a", 0.9), "held-a-1": ("a", 0.9), "held-a-3": ("b", 0.9)}},
]


def learn_and_lose(world: World, *, name: str = "triage", backwards: bool = False) -> World:
    """A model that learnt three labels of a task, 40 rows each, and whose later versions lost some of it."""
    world.model(name, replay={"capacity": 24})
    world.ok(world.client.put(f"/v1/models/{name}/tasks/one"))
    rows = [
        {"id": f"{split}-{label}-{turn}", "text": f"{split} {label} {turn}", "label": label, "split": kind}
        for split, kind, count in (("row", "train", 40), ("held", "eval", 4))
        for label in "abc"
        for turn in range(count)
    ]
    world.examples("one", rows[::-1] if backwards else rows, model=name)
    answers: dict[str, Answer] = {}
    for number, lost in enumerate(LOST, start=1):
        answers |= lost["one"]
        add_version(number, answers={"one": answers}, learns="one" if number == 1 else None, model=name)
    return world


@pytest.fixture
def lossy(world: World) -> World:
    """The scene, with a task that is to be learnt next."""
    learn_and_lose(world)
    world.task("next", train=4, held=2)
    return world


def boost_of(model: str = "triage") -> FlipBoost:
    with session_scope(tenant="acme", role="worker") as session:
        row = get_model(session, model=model)
        return flip_boost(session, model=row, lineage=[0, 1, 2, 3], cut=row.last_batch)


def buffer_of(model: str = "triage", *, boosted: bool = True, capacity: int | None = None) -> list[Candidate]:
    weights = boost_of(model).weights if boosted else None
    with session_scope(tenant="acme", role="worker") as session:
        row = get_model(session, model=model)
        return list(
            read_buffer(
                session,
                model=row,
                lineage=[0, 1, 2, 3],
                cut=row.last_batch,
                capacity=capacity,
                weights=weights,
            ).entries
        )


def sizes(buffer: list[Candidate]) -> Counter[str]:
    return Counter(entry.stratum for entry in buffer)


def test_the_weights_follow_the_negative_flips_per_comparison(lossy: World) -> None:
    # two comparisons of each of four examples; a lost 3 + 1, b lost 1: rates 1/2, 1/8 and 0, their mean 5/24
    boost = boost_of()
    assert boost.flips == {"one/a": (4, 8), "one/b": (1, 8), "one/c": (0, 8)}
    assert boost.weights == {"one/a": 3400, "one/b": 1600, "one/c": 1000}
    assert boost.record() == {
        "one/a": {"negative_flips": 4, "comparisons": 8, "weight": 3.4},
        "one/b": {"negative_flips": 1, "comparisons": 8, "weight": 1.6},
    }


def test_the_boosted_buffer_has_the_documented_shares_and_the_lowest_priorities(lossy: World) -> None:
    assert sizes(buffer_of(boosted=False)) == {"one/a": 8, "one/b": 8, "one/c": 8}
    assert sizes(buffer_of()) == {"one/a": 14, "one/b": 6, "one/c": 4}  # 24 by 3.4 : 1.6 : 1
    with session_scope(tenant="acme", role="worker") as session:
        rows = session.execute(text("SELECT stratum, priority, example_id FROM replay_entries")).all()
    learnt = [Candidate(stratum=row[0], priority=row[1], example_id=row[2]) for row in rows]
    weights = boost_of().weights
    for capacity in (0, 1, 2, 3, 7, 24, 60, 99, 119, 120, 500):
        assert buffer_of(capacity=capacity) == select(learnt, capacity, weights), capacity


def test_the_same_data_and_seed_give_the_same_boosted_buffer_whatever_the_order_of_arrival(
    world: World,
) -> None:
    chosen = []
    for name, backwards in (("first", False), ("second", True)):
        learn_and_lose(world, name=name, backwards=backwards)
        with session_scope(tenant="acme") as session:
            ids = [entry.example_id for entry in buffer_of(name)]
            rows = session.execute(
                text("SELECT content ->> 'text' FROM examples WHERE id = ANY(:ids)"), {"ids": ids}
            )
            chosen.append(sorted(rows.scalars()))
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 24


def test_an_erased_example_no_longer_counts(lossy: World) -> None:
    for turn in range(4):
        assert lossy.client.delete(f"/v1/models/triage/tasks/one/examples/held-a-{turn}").status_code == 204
    assert boost_of().flips == {"one/b": (1, 8), "one/c": (0, 8)}
    assert boost_of().weights == {"one/a": 1000, "one/b": 4000, "one/c": 1000}


def prepared(world: World, work: Path, **fields: Any) -> Plan:
    world.request("next", parent=3, **fields)
    return prepare_update(world.claim(), work=work)


def labels_rehearsed(plan: Plan) -> Counter[str]:
    lines = Path(plan.request.replay).read_text().splitlines()
    return Counter(json.loads(line)["label"] for line in lines)


def test_an_update_rehearses_by_the_boost_only_if_it_asks_for_it(lossy: World, tmp_path: Path) -> None:
    plan = prepared(lossy, tmp_path, replay={"boost": "flips"})
    assert labels_rehearsed(plan) == {"a": 14, "b": 6, "c": 4}
    assert plan.request.lineage["replay"] == {
        "boost": "flips", "boosted": boost_of().record(), "capacity": 24, "rows": 24,
    }  # fmt: skip


def test_an_update_that_does_not_ask_shares_the_buffer_equally(lossy: World, tmp_path: Path) -> None:
    plan = prepared(lossy, tmp_path)
    assert labels_rehearsed(plan) == {"a": 8, "b": 8, "c": 8}
    assert plan.request.lineage["replay"] == {"boost": "none", "capacity": 24, "rows": 24}


@pytest.mark.slow  # a real training
def test_the_boost_is_written_down_with_the_update_and_with_its_version(lossy: World) -> None:
    update = lossy.learn("next", parent=3, replay={"boost": "flips"})
    assert update["replay"] == {"boost": "flips"}
    provenance = lossy.get(f"/models/triage/versions/{update['version']}")["provenance"]["replay"]
    assert provenance == {"boost": "flips", "boosted": boost_of().record(), "capacity": 24, "rows": 24}
    tar = lossy.client.get(f"/v1/models/triage/versions/{update['version']}/adapter").content
    with tarfile.open(fileobj=io.BytesIO(tar)) as folder:
        name = next(name for name in folder.getnames() if name.endswith("version.json"))
        stored = folder.extractfile(name)
        assert stored is not None
        assert json.load(stored)["lineage"]["replay"] == provenance


def test_a_boost_that_could_change_nothing_is_refused_or_warned_of(lossy: World) -> None:
    body = {"tasks": ["next"], "replay": {"boost": "flips"}}
    answer = lossy.client.post("/v1/models/triage/updates", json={**body, "strategy": {"name": "sequential"}})
    assert lossy.problem(answer) == (422, "boost_not_applicable")
    answer = lossy.client.post("/v1/models/triage/updates", json={**body, "replay": {"boost": "luck"}})
    assert lossy.problem(answer)[0] == 422
    assert "boost" not in "".join(lossy.request(**body, parent=3)["warnings"])
    lossy.ok(lossy.client.patch("/v1/models/triage", json={"replay": {"capacity": 120}}))
    assert "changes nothing: all 120 examples" in "".join(lossy.request(**body, parent=3)["warnings"])
    lossy.model("mixed", replay={"policy": "reservoir"})
    lossy.task("next", model="mixed")
    answer = lossy.client.post("/v1/models/mixed/updates", json=body)
    assert lossy.problem(answer) == (422, "boost_not_applicable")
    assert "reservoir" in answer.json()["detail"]
