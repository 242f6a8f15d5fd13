"""Version folders: a plain PEFT adapter with its head and labels, where it has them, provenance and strategy state."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from workers.training.adapters import Adapter, read_adapter, read_tensors, write_adapter
from workers.training.classifier import HEAD_SCALE, ClassificationHead
from workers.training.contract import BaseFolder, TrainRequest
from workers.training.errors import TrainingFailed
from workers.training.folders import read_json, whole_folder, write_json

FORMAT = 1
CLASSIFIER_FACTS = {"pooling": "mean", "head": {"normalise": "l2", "scale": HEAD_SCALE}}
PEFT_TASK_TYPES = {"causal-lm": "CAUSAL_LM"}
PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy")


@dataclass(frozen=True, slots=True)
class Version:
    """What a version folder holds. `states` maps a strategy's name to the tensors it left for the next update.

    A language model's version has no head and no labels.
    """

    adapter: Adapter
    head: ClassificationHead | None
    labels: tuple[str, ...]
    facts: Mapping[str, Any]
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def max_length(self) -> int:
        """The sequence length it was trained with, in tokens."""
        return int(self.facts["max_length"])


def packages() -> dict[str, str]:
    """The versions of Python and of the libraries that shape a result."""
    return {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}


def facts_of(request: TrainRequest, *, sha256: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Everything `version.json` says, `extra` included."""
    return {
        "format": FORMAT,
        "task_type": request.task_type,
        "base_model": {"name": request.base.name, "revision": request.base.revision, "sha256": sha256},
        **({} if request.task_type == "causal-lm" else CLASSIFIER_FACTS),
        "max_length": request.settings.max_length,
        "strategy": request.strategy,
        "adapter": asdict(request.adapter),
        "training": asdict(request.settings),
        "seed": request.settings.seed,
        "lineage": dict(request.lineage),
        "packages": packages(),
        **extra,
    }


def write_version(target: Path, version: Version) -> None:
    """Write a version folder whole: adapter, head and labels if any, `version.json` and `state/STRATEGY.safetensors`."""
    base = version.facts["base_model"]
    with whole_folder(target) as folder:
        config = {**version.adapter.config, "task_type": PEFT_TASK_TYPES.get(version.facts["task_type"])}
        adapter = replace(version.adapter, config=config)
        write_adapter(adapter, folder, base_name=base["name"], revision=base["revision"])
        if version.head is not None:
            head = {
                name: tensor.detach().cpu().contiguous() for name, tensor in version.head.state_dict().items()
            }
            save_file(head, folder / "head.safetensors")
            write_json(folder / "labels.json", list(version.labels))
        write_json(folder / "version.json", dict(version.facts))
        for strategy, tensors in version.states.items():
            (folder / "state").mkdir(exist_ok=True)
            save_file(dict(tensors), folder / "state" / f"{strategy}.safetensors")


def read_version(
    folder: Path,
    base: BaseFolder,
    *,
    task_type: str | None = None,
    sha256: str | None = None,
    state: Path | None = None,
) -> Version:
    """Read and check a version folder.

    Args:
        folder: the version folder.
        base: the base model it is about to be put on.
        task_type: what it is about to be used for, compared with what it was trained for when given.
        state: the folder of what its strategy left for the next update; `folder/state` by default.
        sha256: the checkpoint's hash, compared with the one the version was trained on when given.

    Raises:
        TrainingFailed: `bad_version` for a file that is missing, damaged or at odds with the others;
            `base_model_changed` when the version was trained on another checkpoint.
    """
    facts = read_json(folder / "version.json", code="bad_version")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise TrainingFailed("bad_version", f"version.json is not of format {FORMAT}")
    if task_type is not None and facts["task_type"] != task_type:
        raise TrainingFailed(
            "bad_version", f"the version is of task type {facts['task_type']!r}, not {task_type!r}"
        )
    recorded = facts["base_model"]["sha256"]
    if sha256 is not None and recorded != sha256:
        raise TrainingFailed(
            "base_model_changed",
            f"the version was trained on another checkpoint of {base.name!r} than the one on disk",
            {"recorded": recorded, "found": sha256},
        )
    states = {
        path.stem: read_tensors(path) for path in sorted((state or folder / "state").glob("*.safetensors"))
    }
    if facts["task_type"] == "causal-lm":
        return Version(read_adapter(folder), None, (), facts, states)
    labels = _checked_labels(read_json(folder / "labels.json", code="bad_version"))
    head = read_head(folder, labels, scale=float(facts["head"]["scale"]))
    return Version(read_adapter(folder), head, labels, facts, states)


def read_head(folder: Path, labels: Sequence[str], *, scale: float = HEAD_SCALE) -> ClassificationHead:
    """Read a folder's classification head.

    Raises:
        TrainingFailed: `bad_version` when it is missing, damaged, or has not a row for each label.
    """
    return _checked_head(read_tensors(folder / "head.safetensors"), labels, scale)


def _checked_labels(value: Any) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or not all(isinstance(label, str) for label in value)
        or len(set(value)) != len(value)
    ):
        raise TrainingFailed("bad_version", "labels.json is not a list of distinct strings")
    return tuple(value)


def _checked_head(tensors: Mapping[str, Tensor], labels: Sequence[str], scale: float) -> ClassificationHead:
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if (
        weight is None
        or bias is None
        or weight.ndim != 2
        or len(weight) != len(labels)
        or bias.shape != (len(labels),)
    ):
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise TrainingFailed("bad_version", f"the head does not fit {len(labels)} labels", {"shapes": shapes})
    head = ClassificationHead(weight.shape[1], len(labels), scale)
    head.load_state_dict(dict(tensors))
    return head
