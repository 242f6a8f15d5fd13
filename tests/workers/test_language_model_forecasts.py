"""A forecast of what a real language model would forget: as for classifiers, in nats per token."""

import math

import pytest

from tests.scenes import World
from tests.workers.test_language_models import naming, plain

pytestmark = pytest.mark.slow

TRAINING = {"epochs": 1, "batch_size": 4, "max_length": 32, "learning_rate": 2e-3, "seed": 1}
COMMON = {"model": "writer", "training": TRAINING, "strategy": {"name": "sequential"}}


def test_a_language_model_is_forecast_from_probes_of_this_update_and_the_one_before(world: World) -> None:
    world.model("writer", base_model="smollm2-135m", task_type="causal-lm")
    world.ok(world.client.put("/v1/models/writer/tasks/general", json={"guarded": True}))
    world.examples("general", plain("shutil", train=0, held=3), model="writer")
    for task, module in (("maths", "math"), ("files", "os")):
        world.ok(world.client.put(f"/v1/models/writer/tasks/{task}"))
        world.examples(task, naming(module, train=6, held=3), model="writer")
    assert world.learn("maths", **COMMON, promotion="always")["status"] == "promoted"

    forecast = world.forecast("files", **COMMON)
    assert (forecast["status"], forecast["error"], forecast["parent_version"]) == ("done", None, 1)
    result = forecast["forecast"]
    assert (result["costs"]["fresh_rows"], result["costs"]["probe_steps"]) == (6, 2)
    assert result["skipped"] == []

    # The guarded task was there before the first update, and the base can be asked about it: a past to learn from.
    before = {task["task"]: task for task in world.get("/models/writer/versions/1/report")["tasks"]}
    assert [past["version"] for past in result["past"]] == [1]
    assert result["past"][0]["mean_change"] == pytest.approx(before["general"]["delta"], abs=1e-6)

    assert [(task["task"], task["role"]) for task in result["tasks"]] == [
        ("general", "old"),
        ("maths", "old"),
    ]
    for task in result["tasks"]:
        signs = task["signs"]
        assert task["parent_score"] == pytest.approx(before[task["task"]]["score"], abs=1e-4)
        assert task["parent_score"] < 0, "a mean log-likelihood"
        assert task["predicted_score"] == pytest.approx(task["parent_score"] + task["predicted_change"])
        assert task["forgetting"] == -task["predicted_change"]
        assert signs["score_change"] == signs["likelihood_change"] != 0
        assert signs["label_overlap"] == 0
        assert 0 < signs["new_loss"] < math.log(49152), "the parent guesses better than blindly"
        assert (task["interval"], task["calibrated"], task["past_updates"]) == (None, False, 1)
    assert world.get("/models/writer")["champion"] == 1
    assert len(world.get("/models/writer/versions")["data"]) == 2
