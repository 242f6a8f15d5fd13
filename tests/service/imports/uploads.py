"""Tars of adapters as strangers send them, sound and not, and the sending. The tensors are well-formed and mean nothing."""

import io
import json
import math
import tarfile
from collections.abc import Mapping
from typing import Any

import httpx

from tests.scenes import World

TAR = {"Content-Type": "application/x-tar"}
MODULE = "base_model.model.encoder.layer.0.attention.self.query"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query"], "task_type": None,
    "auto_mapping": {"base_model_class": "BertModel", "parent_library": "transformers.models.bert"},
    "base_model_name_or_path": "/home/somebody/base", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
}  # fmt: skip
LABELS = ["math", "os"]


def safetensors(tensors: Mapping[str, tuple[int, ...]], **changes: Any) -> bytes:
    """A sound file of float32 zeros; `changes` replace whole entries of its header."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header | changes).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def adapter(rank: int = 8) -> bytes:
    return safetensors({f"{MODULE}.lora_A.weight": (rank, 384), f"{MODULE}.lora_B.weight": (384, rank)})


def head(labels: int = 2, *, rows: int | None = None, width: int = 384) -> bytes:
    return safetensors({"weight": (labels if rows is None else rows, width), "bias": (labels,)})


def files(**changes: bytes | None) -> dict[str, bytes]:
    """A sound adapter's files; `changes` name files by their stems, None leaves one out."""
    names = {"config": "adapter_config.json", "tensors": "adapter_model.safetensors", "head": "head.safetensors",
             "labels": "labels.json", "facts": "version.json"}  # fmt: skip
    content: dict[str, bytes | None] = {
        "config": json.dumps(CONFIG).encode(), "tensors": adapter(), "head": head(), "labels": json.dumps(LABELS).encode(),
        **changes,
    }  # fmt: skip
    return {names[stem]: data for stem, data in content.items() if data is not None}


def config(**changes: Any) -> bytes:
    """The sound `adapter_config.json` with changes."""
    return json.dumps(CONFIG | changes).encode()


def tar_of(content: Mapping[str, bytes], *extra: tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of these files, and of further entries without content."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for entry in extra:
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    return target.getvalue()


def entry(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: Any) -> tarfile.TarInfo:
    """An entry of any kind."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def member(name: str, data: bytes) -> bytes:
    """A file's header and its blocks."""
    return entry(name, size=len(data)).tobuf(tarfile.USTAR_FORMAT) + padded(data)


def record(keyword: str, value: str) -> bytes:
    """A record of an extended header, which counts its own length."""
    text = f" {keyword}={value}\n".encode()
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
        length += 1
    return str(length).encode() + text


def extended(records: bytes, *, says: int | None = None) -> bytes:
    """An extended header; `says` is the size that its header gives, whatever the block holds."""
    size = len(records) if says is None else says
    return entry("pax", kind=tarfile.XHDTYPE, size=size).tobuf(tarfile.USTAR_FORMAT) + padded(records)


def tar_with(*blocks: bytes, before: bool = False, **changes: bytes | None) -> bytes:
    """A sound adapter's tar with blocks of one's own behind its files, or before them."""
    own = [member(name, data) for name, data in files(**changes).items()]
    return b"".join((*blocks, *own) if before else (*own, *blocks)) + bytes(1024)


def send(
    world: World,
    tar: bytes | None = None,
    *,
    model: str = "triage",
    headers: dict[str, str] | None = None,
    **query: Any,
) -> httpx.Response:
    """Asks for an import of a tar, a sound one if none is given; what is None is left out of the query."""
    asked = {"tasks": ["one"], **query}
    return world.client.post(
        f"/v1/models/{model}/versions:import",
        params={name: value for name, value in asked.items() if value is not None},
        content=tar_of(files()) if tar is None else tar,
        headers={**TAR, **(headers or {})},
    )
