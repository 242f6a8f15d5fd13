"""Imports: adapters that were trained elsewhere become versions. Real adapters on the real encoder, nothing mocked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from service.artifacts import get_store
from tests.scenes import World, docstrings
from tests.workers.evaluation.test_runner import plain_predictions
from tests.workers.imports.adapters import LABELS, LENGTH, downloaded, features, imported, unpacked
from workers.training.contract import BaseFolder


def test_an_adapter_of_plain_peft_becomes_champion_through_the_gate(
    world: World, first: dict[str, Any]
) -> None:
    assert first["error"] is None
    assert (first["status"], first["decided_by"], first["version"]) == ("promoted", "gate", 1)
    assert first["strategy"]["name"] == "import"
    assert first["metadata"] == {"from": "the old pipeline"}
    version = world.get("/models/triage/versions/1")
    assert (version["strategy"], version["parent"], version["lineage"]) == ("import", 0, [0, 1])
    assert (version["labels"], version["tasks"]) == (LABELS, ["one"])
    assert (version["training"], version["statistics"]["steps"]) == ({"max_length": LENGTH}, 0)
    assert version["scores"][0]["score"] > 0.6
    origin = version["provenance"]["import"]
    assert (origin["sha256"], origin["by"]) == (
        first["strategy"]["parameters"]["sha256"],
        first["requested_by"],
    )
    events = [event["type"] for event in world.get(f"/updates/{first['id']}/events")["data"]]
    assert events == ["queued", "training", "evaluating", "promoted"]
    audited = [entry for entry in world.get("/audit")["data"] if entry["action"] == "adapter.imported"]
    assert [entry["target"] for entry in audited] == [first["id"]]


@pytest.mark.slow
def test_it_answers_as_the_code_that_trained_it_does(
    world: World, first: dict[str, Any], trained_elsewhere: Path, minilm: BaseFolder, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    texts = [text for label in LABELS for text in docstrings(label)[12:20]]
    tokenizer = AutoTokenizer.from_pretrained(minilm.folder)
    encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(minilm.folder), trained_elsewhere).eval()
    head = load_file(trained_elsewhere / "head.safetensors")
    with torch.inference_mode():
        logits = functional.linear(features(encoder, tokenizer, texts), head["weight"], head["bias"])
    theirs = [LABELS[at] for at in logits.argmax(1)]
    assert len(set(theirs)) == 2
    ours = unpacked(downloaded(world, 1), tmp_path)
    assert plain_predictions(str(ours), minilm, texts) == theirs
    right = sum(label == answer for label, answer in zip(["os"] * 8 + ["math"] * 8, theirs, strict=True))
    assert world.get("/models/triage/versions/1")["scores"][0]["score"] == pytest.approx(right / 16)
    facts = json.loads((ours / "version.json").read_text())
    assert (facts["strategy"], facts["training"], facts["lineage"]["update"]) == (
        "import",
        {"max_length": LENGTH},
        first["id"],
    )
    assert json.loads((ours / "adapter_config.json").read_text())["lora_dropout"] == 0  # the model's


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["replay", "ewc", "merge"])
def test_updates_go_on_from_it(world: World, first: dict[str, Any], strategy: str) -> None:
    """`ewc` finds no Fisher information and rebuilds it from the buffer; `merge` adds an adapter to the imported one."""
    update = world.learn("two", strategy={"name": strategy}, parent=1, promotion="manual")
    assert (update["status"], update["error"]) == ("awaiting_approval", None)
    version = world.get(f"/models/triage/versions/{update['version']}")
    assert version["labels"] == [*LABELS, "random", "socket"]
    assert version["statistics"]["replay_rows"] >= 20  # `merge` holds a few of the 24 out
    report = world.get(f"/models/triage/versions/{update['version']}/report")
    (old,) = [task for task in report["tasks"] if task["task"] == "one"]
    assert (old["role"], old["learned_score"]) == (
        "old",
        world.get("/models/triage/versions/1")["scores"][0]["score"],
    )
    world.client.post(f"/v1/updates/{update['id']}/reject")


def test_what_was_downloaded_comes_back_with_the_same_weights(
    world: World, first: dict[str, Any], tmp_path: Path
) -> None:
    tar = downloaded(world, 1)
    again = imported(world, tar, parent=1, max_length=None, promotion="manual")
    assert (again["status"], again["error"]) == ("awaiting_approval", None)
    version = world.get(f"/models/triage/versions/{again['version']}")
    assert (version["parent"], version["training"]) == (1, {"max_length": LENGTH})
    its = world.get("/models/triage/versions/1")["scores"]  # also on tasks that others have learnt from it
    assert version["scores"] == [score for score in its if score["task"] == "one"]
    before, after = (
        unpacked(data, tmp_path / name)
        for name, data in (("before", tar), ("after", downloaded(world, version["version"])))
    )
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "head.safetensors",
        "labels.json",
        "README.md",
    ):
        assert not (before / name).exists() or (before / name).read_bytes() == (after / name).read_bytes()
    origin = json.loads((after / "version.json").read_text())["origin"]
    assert origin["lineage"]["update"] == first["id"]
    world.client.post(f"/v1/updates/{again['id']}/reject")


def test_the_upload_is_gone_and_the_version_has_an_artifact_of_its_own(
    world: World, first: dict[str, Any]
) -> None:
    assert not get_store().holds(first["strategy"]["parameters"]["sha256"])
    assert get_store().holds(world.get("/models/triage/versions/1")["artifact"]["sha256"])
