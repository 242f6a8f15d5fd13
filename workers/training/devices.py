"""Where an update runs and in which precision."""

import os
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from workers.training.contract import Precision
from workers.training.errors import TrainingFailed


def choose_device() -> torch.device:
    """This process's GPU when there is one (the first, unless `teams` chose another), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def check_devices(wanted: int) -> None:
    """Check that this machine has `wanted` GPUs or, where it has none at all, as many CPU cores.

    Raises:
        TrainingFailed: `too_few_devices`, naming both numbers.
    """
    on_gpu = torch.cuda.is_available()
    found = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    if wanted > found:
        what = "GPUs" if on_gpu else "CPU cores and no GPU"
        raise TrainingFailed(
            "too_few_devices",
            f"training.devices is {wanted} but this worker has {found} {what}; ask for {found} at most",
            {"wanted": wanted, "found": found},
        )


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
