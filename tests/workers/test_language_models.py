"""The main job with a real language model: learn two skills, keep an eye on what the base could do, roll back."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import emptied
from tests.scenes import World, docstrings, make_client

pytestmark = pytest.mark.slow

TRAINING = {"epochs": 3, "batch_size": 4, "max_length": 40, "learning_rate": 2e-3, "seed": 1}
REPLAY = {"name": "replay", "fraction": 0.4}


def plain(module: str, *, train: int, held: int) -> list[dict[str, Any]]:
    """Prose about a subject, every text once."""
    texts = list(dict.fromkeys(text.split(": ", 1)[1] for text in docstrings(module)))
    return [
        {"text": text, "split": "train" if at < train else "eval"}
        for at, text in enumerate(texts[: train + held])
    ]


def naming(module: str, *, train: int, held: int) -> list[dict[str, Any]]:
    """A skill: say which function a description belongs to."""
    names = {what[:80]: name for name, what in (text.split(": ", 1) for text in docstrings(module))}
    pairs = list(names.items())[: train + held]
    return [
        {
            "prompt": f"{what}\nFunction:",
            "completion": f" {name}",
            "split": "train" if at < train else "eval",
        }
        for at, (what, name) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def taught(database_url: str, redis_url: str) -> Iterator[World]:
    """A model with a guarded general task that has learnt two skills, rehearsing general text with the second."""
    emptied(database_url)
    world = World(make_client("acme"))
    world.model("writer", base_model="smollm2-135m", task_type="causal-lm", replay={"capacity": 40})
    for task, module in (("general", ""), ("maths", "math"), ("files", "os")):
        body = {"guarded": True} if task == "general" else {}
        world.ok(world.client.put(f"/v1/models/writer/tasks/{task}", json=body))
        rows = plain("shutil", train=10, held=6) if task == "general" else naming(module, train=10, held=5)
        world.examples(task, rows, model="writer")
    common = {"model": "writer", "training": TRAINING, "strategy": REPLAY}
    assert world.learn("maths", "general", **common)["status"] == "promoted"
    twice = {**common, "training": {**TRAINING, "repeats": 2}}
    assert world.learn("files", **twice)["status"] == "promoted"
    yield world
    emptied(database_url)


def test_the_report_shows_general_text_and_every_skill_at_every_version(taught: World) -> None:
    report = taught.get("/models/writer/reports/forgetting")
    assert report["versions"] == [0, 1, 2]
    assert sorted(report["tasks"]) == ["files", "general", "maths"]
    perplexity = report["measures"]["perplexity"]
    assert all(value > 1 for row in perplexity for value in row)
    # What is scored is the mean over examples; each is a mean log-likelihood, so below zero.
    assert all(score < 0 for row in report["matrix"] for score in row)
    column = report["tasks"].index("maths")
    assert perplexity[1][column] < perplexity[0][column], "the first update did not learn its skill"
    column = report["tasks"].index("files")
    assert perplexity[2][column] < perplexity[1][column], "the second update did not learn its skill"
    assert report["summary"]["forward_transfer"] is not None

    update = taught.get("/models/writer/versions/2/report")
    general = next(task for task in update["tasks"] if task["task"] == "general")
    assert general["role"] == "old"
    assert general["delta_ci"][0] <= general["delta"] <= general["delta_ci"][1]
    assert general["measures"]["perplexity"] == pytest.approx(perplexity[2][report["tasks"].index("general")])
    noise = general["noise"]
    assert noise["scores"][0] == general["score"]
    assert noise["scores"][1] < 0
    assert noise["changes"] == pytest.approx([score - general["parent_score"] for score in noise["scores"]])
    assert update["noise"]["summary"]["worst_retention"]["low"] > 0
    kept = update["summary"]["worst_retention"]
    assert kept is not None
    assert 0 < kept < math.inf
    held = {reason["task"]: reason["detail"] for reason in update["verdict"]["reasons"]}
    assert "bootstrap" in held["general"]

    outcomes = taught.get("/models/writer/versions/2/outcomes?task=maths")["data"]
    assert len(outcomes) == 5
    assert all(outcome["predicted"] is None and outcome["score"] < 0 for outcome in outcomes)
    assert taught.client.get("/v1/models/writer/versions/2/flips").status_code == 200


def test_the_dial_of_a_language_model_has_graded_scores_with_bootstrap_bounds(taught: World) -> None:
    dial = taught.dial(2, model="writer", betas=[0.5])
    assert (dial["status"], [point["beta"] for point in dial["points"]]) == ("done", [0, 0.5, 1])
    matrix = taught.get("/models/writer/reports/forgetting")
    for beta, row in ((0, 1), (1, 2)):
        stored = dict(zip(matrix["tasks"], matrix["matrix"][row], strict=True))
        point = next(point for point in dial["points"] if point["beta"] == beta)
        assert {task["task"]: task["score"] for task in point["tasks"]} == stored
    summary = taught.get("/models/writer/versions/2/report")["summary"]
    assert {name: value for name, value in dial["points"][2].items() if name in summary} == {
        name: value for name, value in summary.items() if name in dial["points"][2]
    }
    for task in dial["points"][1]["tasks"]:
        low, high = task["interval"]
        assert low < task["score"] < high
        assert task["measures"]["perplexity"] > 1
    assert dial["points"][1]["old_tasks"] in ("pass", "fail", "inconclusive")


def test_a_language_model_is_rolled_back(taught: World) -> None:
    rolled = taught.ok(taught.client.post("/v1/models/writer/rollback", json={"reason": "drill"}))
    assert (rolled["champion"], rolled["rolled_back_from"]) == (1, 2)
