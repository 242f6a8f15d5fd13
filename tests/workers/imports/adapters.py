"""Adapters as plain peft leaves them, and their imports through the API. Nothing of the product has a part in the training."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file, save, save_file
from torch.nn import functional

from tests.scenes import World, docstrings
from tests.service.imports import uploads
from workers.training.contract import BaseFolder

LABELS = ["os", "math"]  # another order than a version trained here would have
LENGTH = 32


def train_elsewhere(base: BaseFolder, folder: Path) -> Path:
    """Leaves in `folder` what plain peft, transformers and torch leave after a few steps, and returns it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(3)
    texts = [text for label in LABELS for text in docstrings(label)[:12]]
    wanted = torch.tensor([at for at in range(2) for _ in range(12)])
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=["query", "key", "value"])
    encoder = get_peft_model(AutoModel.from_pretrained(base.folder), config)
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
    encoder.save_pretrained(folder)
    save_file({"weight": head.weight.detach(), "bias": head.bias.detach()}, folder / "head.safetensors")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    return folder


def features(encoder: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """What the head sees, as docs/importing.md says it."""
    tokens = tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"][..., None].float()
    mean = (encoder(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
    return functional.normalize(mean, dim=-1) * 16.0


def packed(folder: Path, **changes: bytes) -> bytes:
    """The folder's tar, with some files replaced."""
    content = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    return uploads.tar_of(content | {name.replace("__", "."): data for name, data in changes.items()})


def spoilt(folder: Path, name: str, change: Any) -> bytes:
    """The folder's tar with the tensors of one file changed."""
    tensors = load_file(folder / name)
    change(tensors)
    return packed(folder, **{name.replace(".", "__"): save(tensors)})


def send(world: World, tar: bytes, **query: Any) -> httpx.Response:
    """Asks for an import with the length that the adapters here were trained with."""
    return uploads.send(world, tar, **{"max_length": LENGTH, **query})


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
