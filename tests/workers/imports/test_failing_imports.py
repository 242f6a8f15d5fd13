"""Imports that fail once a worker looks at them, and what becomes of their uploads."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from service.artifacts import get_store
from tests.scenes import World
from tests.service.imports.uploads import extended, files, record, tar_with
from tests.workers.imports.adapters import (
    imported,
    packed,
    send,
    spoilt,
)
from workers.imports import UploadLost, unpacked_upload


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
    assert not get_store().holds(failed["strategy"]["parameters"]["sha256"])


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
