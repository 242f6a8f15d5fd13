"""Imports: adapters that were trained elsewhere become versions. Real adapters on the real encoder, nothing mocked."""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load_file, save, save_file
from torch.nn import functional

from service.artifacts import get_store
from service.db import session_scope
from service.models import ReplayEntry, Version, VersionTask
from tests.conftest import emptied
from tests.scenes import World, docstrings, make_client
from tests.service.imports.uploads import extended, files, record, tar_of, tar_with
from tests.workers.evaluation.test_runner import plain_predictions
from workers.imports import UploadLost, unpacked_upload
from workers.training.contract import BaseFolder

LABELS = ["os", "math"]  # another order than a version trained here would have
LENGTH = 32


def features(encoder: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """What the head sees, as docs/importing.md says it."""
    tokens = tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"][..., None].float()
    mean = (encoder(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
    return functional.normalize(mean, dim=-1) * 16.0


@pytest.fixture(scope="module")
def trained_elsewhere(minilm: BaseFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as plain peft, transformers and torch leave it after a few steps; nothing of the product had a part in it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(3)
    texts = [text for label in LABELS for text in docstrings(label)[:12]]
    wanted = torch.tensor([at for at in range(2) for _ in range(12)])
    tokenizer = AutoTokenizer.from_pretrained(minilm.folder)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=["query", "key", "value"])
    encoder = get_peft_model(AutoModel.from_pretrained(minilm.folder), config)
    head = torch.nn.Linear(384, 2)
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": parameters, "lr": 1e-3}, {"params": head.parameters(), "lr": 1e-2}]
    )
    for _ in range(8):
        optimiser.zero_grad()
        loss = functional.cross_entropy(head(features(encoder, tokenizer, texts)), wanted)
        loss.backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("trained-elsewhere")
    encoder.save_pretrained(folder)
    save_file({"weight": head.weight.detach(), "bias": head.bias.detach()}, folder / "head.safetensors")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    return folder


def packed(folder: Path, **changes: bytes) -> bytes:
    """The folder's tar, with some files replaced."""
    content = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    return tar_of(content | {name.replace("__", "."): data for name, data in changes.items()})


def spoilt(folder: Path, name: str, change: Any) -> bytes:
    """The folder's tar with the tensors of one file changed."""
    tensors = load_file(folder / name)
    change(tensors)
    return packed(folder, **{name.replace(".", "__"): save(tensors)})


def send(world: World, tar: bytes, *, model: str = "triage", **query: Any) -> Any:
    asked = {"tasks": ["one"], "max_length": LENGTH, **query}
    return world.client.post(
        f"/v1/models/{model}/versions:import",
        params={name: value for name, value in asked.items() if value is not None},
        content=tar,
        headers={"Content-Type": "application/x-tar"},
    )


def imported(world: World, tar: bytes, *, model: str = "triage", **query: Any) -> dict[str, Any]:
    """Asks for an import, works it off, and returns how it ended."""
    update = world.ok(send(world, tar, model=model, **query))
    world.work()
    return world.update(update["id"])


def downloaded(world: World, version: int, *, model: str = "triage") -> bytes:
    answer = world.client.get(f"/v1/models/{model}/versions/{version}/adapter")
    assert answer.status_code == 200
    return bytes(answer.content)


def unpacked(tar: bytes, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def world(database_url: str, redis_url: str) -> Iterator[World]:
    """A model with two tasks; only the first is known to the adapter."""
    emptied(database_url)
    world = World(make_client("acme"))
    world.model(gate={"max_regression": 1.0})
    world.task("one")
    world.task("two", ("random", "socket"))
    yield world
    emptied(database_url)


@pytest.fixture(scope="module")
def first(world: World, trained_elsewhere: Path) -> dict[str, Any]:
    """The import that most tests look at: version 1, promoted by the gate."""
    return imported(world, packed(trained_elsewhere), metadata='{"from": "the old pipeline"}')


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


def test_its_rows_are_learnt_and_rehearsed_and_no_news_to_a_later_update(
    world: World, first: dict[str, Any]
) -> None:
    with session_scope(tenant="acme") as session:
        learnt = session.scalars(sa.select(VersionTask).where(VersionTask.version == 1)).one()
        entries = session.scalar(
            sa.select(sa.func.count()).select_from(ReplayEntry).where(ReplayEntry.version == 1)
        )
    assert (learnt.after_batch, learnt.rows, entries) == (0, 24, 24)
    answer = world.client.post("/v1/models/triage/updates", json={"tasks": ["one"]})
    assert world.problem(answer) == (422, "nothing_to_learn")


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
    assert version["scores"] == world.get("/models/triage/versions/1")["scores"]
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


def test_with_fresh_rows_it_knows_the_task_and_the_next_update_learns_all_of_them(
    world: World, first: dict[str, Any], trained_elsewhere: Path
) -> None:
    held = imported(world, packed(trained_elsewhere), rows="fresh")
    assert held["status"] == "awaiting_approval"  # the champion, by now version 1, is not its parent
    assert any("a person decides" in warning for warning in held["warnings"])
    assert {reason["task"]: reason["rule"] for reason in held["verdict"]["reasons"]} == {
        "one": "max_regression"
    }
    version = held["version"]
    assert world.get(f"/models/triage/versions/{version}")["tasks"] == ["one"]
    asked = world.request("one", parent=version, promotion="manual", strategy={"name": "sequential"})
    assert asked["warnings"] == [] or all("has no rows" not in warning for warning in asked["warnings"])
    world.ok(world.client.post(f"/v1/updates/{asked['id']}/cancel"))
    with session_scope(tenant="acme") as session:
        assert not session.scalar(
            sa.select(ReplayEntry.example_id).where(ReplayEntry.version == version).limit(1)
        )
    world.client.post(f"/v1/updates/{held['id']}/reject")


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[sorted(tensors)[0]].view(-1)[1] = float("nan")


def short(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name][:, :-1].contiguous()


def missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[sorted(tensors)[0]]


def more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.encoder.layer.0.output.dense.lora_A.weight"] = torch.zeros(4, 1536)


def narrow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight"] = tensors["weight"][:, :100].contiguous()


@pytest.mark.parametrize(
    ("file", "change", "code"),
    [
        ("adapter_model.safetensors", nan, "bad_numbers"),
        ("adapter_model.safetensors", short, "adapter_does_not_fit"),
        ("adapter_model.safetensors", missing, "adapter_does_not_fit"),
        ("adapter_model.safetensors", more, "adapter_does_not_fit"),
        ("head.safetensors", nan, "bad_numbers"),
        ("head.safetensors", narrow, "head_does_not_fit"),
    ],
)
def test_what_only_the_base_can_tell_fails_the_update_at_once_with_a_code(
    world: World, trained_elsewhere: Path, file: str, change: Any, code: str
) -> None:
    failed = imported(world, spoilt(trained_elsewhere, file, change))
    assert (failed["status"], failed["error"]["code"], failed["attempt"]) == ("failed", code, 1)
    assert failed["version"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["word_embeddings"]},
        {"bias": "all"},
        {"layer_replication": [[0, 4], [2, 5]]},
        {"init_lora_weights": "pissa"},
        {"r": 5},
    ],
)
def test_a_configuration_that_does_not_go_with_its_tensors_fails_the_update(
    world: World, trained_elsewhere: Path, changes: dict[str, Any]
) -> None:
    config = json.loads((trained_elsewhere / "adapter_config.json").read_text()) | changes
    failed = imported(world, packed(trained_elsewhere, adapter_config__json=json.dumps(config).encode()))
    assert (failed["status"], failed["error"]["code"], failed["attempt"]) == (
        "failed",
        "adapter_does_not_fit",
        1,
    )


def test_rows_erased_before_the_worker_came_end_the_claim_to_have_learnt_them(
    world: World, trained_elsewhere: Path
) -> None:
    world.examples(
        "one",
        [{"text": "a row of bob's", "label": "os", "split": "train", "subject": "bob", "id": "bobs"}],
    )
    update = world.ok(send(world, packed(trained_elsewhere)))
    world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "bob"}))
    world.work()
    failed = world.update(update["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "claim_outdated")


def test_a_later_erasure_taints_it_by_the_rows_it_claims(world: World, trained_elsewhere: Path) -> None:
    row = {"text": "a row of eve's", "label": "os", "split": "train", "subject": "eve"}
    world.examples("one", [row])
    learnt = imported(world, packed(trained_elsewhere), promotion="manual")
    fresh = imported(world, packed(trained_elsewhere), promotion="manual", rows="fresh")
    erasure = world.ok(world.client.delete("/v1/models/triage/examples", params={"subject": "eve"}))
    assert erasure["versions"] == [learnt["version"]]
    with tarfile.open(fileobj=io.BytesIO(downloaded(world, learnt["version"]))) as version:
        facts = version.extractfile("version.json")
        assert facts is not None
        named = packed(trained_elsewhere, version__json=facts.read())
    for tar in (packed(trained_elsewhere), downloaded(world, learnt["version"]), named):
        assert world.problem(send(world, tar, rows="fresh")) == (409, "tainted_adapter")
    assert send(world, downloaded(world, fresh["version"]), promotion="manual").status_code == 202
    for update in (learnt, fresh):
        world.client.post(f"/v1/updates/{update['id']}/reject")


def test_the_upload_is_kept_while_it_waits_and_goes_when_nobody_waits_for_it(
    world: World, trained_elsewhere: Path
) -> None:
    from workers.housekeeping import ORPHAN_AGE_SECONDS, sweep_store

    update = world.ok(send(world, packed(trained_elsewhere, labels__json=b'["math", "os"]')))
    sha256 = update["strategy"]["parameters"]["sha256"]
    path = get_store()._path(sha256)

    def swept_after_an_hour() -> bool:
        os.utime(path, (0, Path(path).stat().st_mtime - 2 * ORPHAN_AGE_SECONDS))
        sweep_store()
        return not get_store().holds(sha256)

    assert not swept_after_an_hour()
    with session_scope(tenant="acme") as session:
        used = sa.func.artifacts_in_use(sa.literal([sha256], sa.ARRAY(sa.Text)))
        assert session.scalars(sa.select(used)).all() == [sha256]
    world.ok(world.client.post(f"/v1/updates/{update['id']}/cancel"))
    assert swept_after_an_hour()


def test_a_stranger_s_tar_is_unpacked_as_it_was_checked_and_never_by_tarfile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tar_with(extended(record("mtime", "1e300")), extended(record("comment", "last")))
    sha256 = get_store().put_tar(io.BytesIO(tar))
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("tarfile reads the upload"))
    folder = unpacked_upload(sha256, work=tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files()
    damaged = Path(get_store()._path(sha256))
    damaged.write_bytes(tar[:-1] + b"x")
    assert unpacked_upload(sha256, work=tmp_path) == folder  # of an earlier attempt
    with pytest.raises(UploadLost):
        unpacked_upload(sha256, work=tmp_path.parent)
    get_store().delete(sha256)


def test_an_upload_that_was_lost_fails_and_says_what_to_do(world: World, trained_elsewhere: Path) -> None:
    update = world.ok(send(world, packed(trained_elsewhere, labels__json=b'["math", "os"]')))
    get_store().delete(update["strategy"]["parameters"]["sha256"])
    world.work()
    failed = world.update(update["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "upload_lost")
    assert "import it again" in failed["error"]["message"]


def test_no_version_refers_to_a_failed_upload(world: World, first: dict[str, Any]) -> None:
    with session_scope(tenant="acme") as session:
        kept = set(session.scalars(sa.select(Version.artifact_sha256)))
    assert first["strategy"]["parameters"]["sha256"] not in kept
