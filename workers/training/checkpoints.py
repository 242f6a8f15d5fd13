"""Checkpoints of an unfinished update: parameters, optimiser, strategy state, generator and position.

Everything else is rebuilt: the order of the rows is a pure function of seed and epoch, and the schedule one of
the step, so that a resumed update goes on exactly where it was.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.training.contract import TrainRequest
from workers.training.errors import TrainingFailed
from workers.training.folders import whole_folder, write_json
from workers.training.model import AdaptedModel


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run after `step` optimiser steps; `tensors` are named by what they belong to."""

    step: int
    losses: tuple[float, ...]
    tensors: Mapping[str, Tensor]


def fingerprint(request: TrainRequest) -> str:
    """A hash of everything that decides the result of a request, file contents included.

    A checkpoint of another fingerprint is not resumed: a row that has been erased between two attempts must
    not live on in the parameters.
    """
    facts = asdict(request)
    for name in (
        "output",
        "checkpoints",
        "checkpoint_seconds",
        "lineage",
        "fresh",
        "replay",
        "parent_state",
        "child",
        "share",  # the first steps are those of the whole
    ):
        facts.pop(name)
    facts["base"].pop("folder")
    parent = Path(request.parent) if request.parent is not None else None
    facts["parent"] = parent and [
        _file_hash(parent / name)
        for name in ("adapter_model.safetensors", "head.safetensors")
        if (parent / name).exists()
    ]
    facts["state"] = parent and [
        (path.name, _file_hash(path))
        for path in sorted(Path(request.parent_state or parent / "state").glob("*"))
    ]
    facts["rows"] = [_file_hash(Path(path)) if path else None for path in (request.fresh, request.replay)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def capture(
    model: AdaptedModel, optimiser: torch.optim.Optimizer, strategy_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Collect a run's tensors under the names `restore` looks for, copied to the CPU."""
    parameters = model.trainable()
    tensors: dict[str, Tensor] = {
        f"model.{name}": parameter.detach() for name, parameter in parameters.items()
    }
    for name, parameter in parameters.items():
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{key}.{name}"] = torch.as_tensor(value)
    tensors |= {f"strategy.{name}": tensor for name, tensor in strategy_state.items()}
    tensors["generator.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["generator.cuda"] = torch.cuda.get_rng_state()
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def restore(
    checkpoint: Checkpoint, model: AdaptedModel, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Put a checkpoint's tensors back in their places; returns the strategy's own."""
    tensors = checkpoint.tensors
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            parameter.copy_(tensors[f"model.{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimiser.{key}.{name}" in tensors:
                    saved = tensors[f"optimiser.{key}.{name}"]
                    optimiser.state[parameter][key] = saved.to(parameter.device, copy=True)
    torch.set_rng_state(tensors["generator.cpu"])
    if "generator.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["generator.cuda"])
    return {name.removeprefix("strategy."): t for name, t in tensors.items() if name.startswith("strategy.")}


def write_checkpoint(root: Path, checkpoint: Checkpoint, *, fingerprint: str) -> None:
    """Write a checkpoint whole, then remove the ones before it.

    Raises:
        TrainingFailed: `non_finite_parameters` when it holds a number that is none; nothing is written then and
            the last good checkpoint stays.
    """
    check_finite(checkpoint)
    root.mkdir(parents=True, exist_ok=True)
    name = f"step-{checkpoint.step:09d}"
    with whole_folder(root / name) as folder:
        save_file(dict(checkpoint.tensors), folder / "tensors.safetensors")
        position = {
            "step": checkpoint.step,
            "losses": list(checkpoint.losses),
            "fingerprint": fingerprint,
            "tensors_sha256": _file_hash(folder / "tensors.safetensors"),
        }
        write_json(folder / "position.json", position)
    for older in root.glob("step-*"):
        if older.name != name:
            shutil.rmtree(older, ignore_errors=True)


def check_finite(checkpoint: Checkpoint) -> None:
    """Check that training has left finite parameters.

    Raises:
        TrainingFailed: `non_finite_parameters`, naming the step and the first bad tensor.
    """
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("model.") and not tensor.isfinite().all():
            raise TrainingFailed(
                "non_finite_parameters",
                f"after step {checkpoint.step} {name.removeprefix('model.')} holds numbers that are not finite; "
                "lower training.learning_rate",
                {"step": checkpoint.step, "parameter": name.removeprefix("model.")},
            )


def read_checkpoint(root: Path, *, fingerprint: str) -> Checkpoint | None:
    """Return the newest undamaged checkpoint of this very request, or `None` to begin at the beginning."""
    for folder in sorted(root.glob("step-?????????"), reverse=True):
        try:
            position = json.loads((folder / "position.json").read_text(encoding="utf-8"))
            if position["tensors_sha256"] != _file_hash(folder / "tensors.safetensors"):
                continue
            if position["fingerprint"] == fingerprint:
                tensors = load_file(folder / "tensors.safetensors")
                return Checkpoint(int(position["step"]), tuple(position["losses"]), tensors)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None
