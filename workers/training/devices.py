"""Where an update runs and in which precision."""

import resource
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from workers.training.contract import Precision


def choose_device() -> torch.device:
    """The first GPU when there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The device in words, for the record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def autocast(device: torch.device, precision: Precision) -> Callable[[], AbstractContextManager[object]]:
    """A factory of autocast contexts: bfloat16 where asked for, or on `auto` where the GPU has it."""
    bf16 = precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: the allocator's on a GPU, the process's resident set elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
