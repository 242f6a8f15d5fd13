"""The model that was scored last, kept for the next eval set: a version is scored on many sets in a row.

One model at a time, per process. A version folder that was written anew counts as another version.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from workers.training.contract import EvaluateRequest

Model = TypeVar("Model")
Key = tuple[Any, ...]


@dataclass(slots=True)
class _Kept:
    key: Key | None = None
    model: Any = None


_kept = _Kept()


def kept(request: EvaluateRequest, load: Callable[[], Model]) -> Model:
    """Return the request's model: the one scored last where it is the same, else what `load` gives."""
    key = (request.task_type, request.base, *_file_keys(request.version))
    if _kept.key != key:
        forget()  # first: two models at once may be one too many
        _kept.model, _kept.key = load(), key
    model: Model = _kept.model
    return model


def forget() -> None:
    """Let go of the model; training needs the memory."""
    _kept.key = _kept.model = None
    gc.collect()  # a language model is part of a cycle: its output layer's hook refers back to it
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.cuda.empty_cache()


def _file_keys(version: str | None) -> Key:
    if version is None:
        return (None,)
    files = sorted(Path(version).glob("*.safetensors"))
    stats = [(path.name, path.stat()) for path in files]
    return (version, *((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
