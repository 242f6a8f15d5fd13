"""What it costs to make a version without training: a blend, an import."""

from collections.abc import Sequence

import torch

from workers.training.contract import TrainResult
from workers.training.devices import device_name, peak_memory_bytes
from workers.training.versions import packages

CPU = torch.device("cpu")


def untrained(labels: Sequence[str], *, seconds: float) -> TrainResult:
    """Return the result of `seconds` of work on the CPU: no steps and no rows."""
    return TrainResult(
        steps=0,
        epochs=0.0,
        fresh_rows=0,
        replay_rows=0,
        final_loss=None,
        train_seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(CPU),
        labels=tuple(labels),
        losses=(),
        packages=packages(),
        device=device_name(CPU),
    )
