"""Quantised base models: a GGUF file becomes a folder of plain safetensors, once per machine."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from workers.training.base_models import require_pinned
from workers.training.contract import BaseFolder
from workers.training.errors import TrainingFailed
from workers.training.folders import whole_folder, write_json

FORMAT = 1
"""Part of the cached folder's name; to be raised when what is written below changes."""

NOT_KEPT = ("_name_or_path", "_model_name_or_path", "quantization_config", "transformers_version")
"""What the written `config.json` leaves out: it must not change with the machine or with a library's release."""


def plain_base(base: BaseFolder) -> BaseFolder:
    """Return `base` as a folder of safetensors: itself, or its GGUF file dequantised into `base.cache`.

    The first caller on a machine does the work (half a minute for 135M parameters), others wait for it; the
    folder is named by the file's content and appears whole. Weights are kept in float16, whose rounding is a
    hundredth of the error that four bits have left already.

    Raises:
        TrainingFailed: `base_model_missing` when there is no such file or nowhere to put the folder,
            `base_model_mismatch` when it is not the pinned one, `base_model_unreadable` when the file cannot be dequantised.
    """
    if base.gguf is None:
        return base
    source = Path(base.folder) / base.gguf
    if base.cache is None or not source.is_file():
        raise TrainingFailed(
            "base_model_missing",
            f"base model {base.name!r} has no file {base.gguf} in its folder, or no cache folder to unpack it into",
            {"base_model": base.name},
        )
    content = _digest(source)
    require_pinned(base, content)
    target = Path(base.cache) / f"{source.stem}-{content[:16]}-{FORMAT}"
    with _alone(target):
        if not target.is_dir():
            with whole_folder(target) as folder:
                _dequantise(base, folder)
    return replace(base, folder=str(target), gguf=None, cache=None, pinned=None)


def _digest(source: Path) -> str:
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep every other process out until the context ends, or this process does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _dequantise(base: BaseFolder, folder: Path) -> None:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.folder, gguf_file=base.gguf, local_files_only=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(base.folder, gguf_file=base.gguf, local_files_only=True)
        _write_model(model, folder)
        _write_tokenizer(tokenizer, base, folder, longest=int(model.config.max_position_embeddings))
    except (ImportError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise TrainingFailed(
            "base_model_unreadable",
            f"{base.gguf} of base model {base.name!r} cannot be dequantised: {error}",
            {"base_model": base.name},
        ) from error


def _write_model(quantised: Any, folder: Path) -> None:
    """Write weights and configuration as those of a model that was never quantised."""
    facts = {key: value for key, value in quantised.config.to_dict().items() if key not in NOT_KEPT}
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**facts))
    plain.load_state_dict(quantised.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    plain.to(torch.float16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {key: value for key, value in config.items() if key not in NOT_KEPT})


def _write_tokenizer(tokenizer: Any, base: BaseFolder, folder: Path, *, longest: int) -> None:
    if _pre_tokenizer_name(base) == "smollm":
        # The conversion drops this step of SmolLM's own tokenizer: every digit stands alone.
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.model_max_length = longest
    tokenizer.save_pretrained(folder)


def _pre_tokenizer_name(base: BaseFolder) -> str | None:
    from gguf import GGUFReader  # only a quantised base needs it

    field = GGUFReader(str(Path(base.folder) / str(base.gguf))).fields.get("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())
