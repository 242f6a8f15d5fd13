"""Adapters of PEFT: attach them to an encoder, take them off as plain tensors, write and read them.

Three kinds come through this one door: `lora` (rank-stabilised or not), `dora` and `oft`. Sums and averages of
LoRA adapters are in `algebra`.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, OFTConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.oft import OFTLayer
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workers.training.contract import AdapterKind, AdapterSettings
from workers.training.errors import TrainingFailed, quoted, reason_of
from workers.training.folders import read_json, write_json
from workers.training.targets import resolve_targets, target_layers

# PEFT asks transformers under a name that transformers is about to drop; nothing here depends on the answer.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

MAX_RANK = 512

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PEFT_PREFIX = "base_model.model."

CONFIGS = {"LORA": LoraConfig, "OFT": OFTConfig}

KEPT_OPTIONS = {
    "LORA": (
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_rslora",
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
    ),
    "OFT": (
        "r",
        "oft_block_size",
        "module_dropout",
        "target_modules",
        "use_cayley_neumann",
        "num_cayley_neumann_terms",
    ),
}
"""What is taken from an `adapter_config.json`, by `peft_type`."""

IDLE_OPTIONS = frozenset(
    {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
    | {"inference_mode"}
)
"""Options that say nothing about what the tensors do. Any other one that is set could load code, reach outside the
folder or mean another function of the same tensors, so the adapter is refused."""

INITIALISATIONS = (True, False, "gaussian", "orthogonal")
"""Ways to initialise that leave the base weights alone; PiSSA and its kin do not."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One PEFT adapter off its model: its configuration and its tensors under PEFT's own names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def kind(self) -> AdapterKind:
        """Which kind of adapter it is, as strategies declare what they can take."""
        if self.config["peft_type"] == "OFT":
            return "oft"
        return "dora" if self.config.get("use_dora") else "lora"

    @property
    def rank(self) -> int:
        """The adapter's rank, the largest over its layers; 0 for OFT, which has none."""
        return max((len(a) for _, a, _, _ in self.factors()), default=0)

    def factors(self) -> Iterator[tuple[str, Tensor, Tensor, float]]:
        """Yield (module name, A [r, in], B [out, r], scaling), in name order; ΔW = scaling · B·A for plain LoRA."""
        for name in sorted(self.tensors):
            if name.endswith(".lora_A.weight"):
                stem = name.removesuffix(".lora_A.weight")
                module, a = stem.removeprefix(PEFT_PREFIX), self.tensors[name]
                yield module, a, self.tensors[f"{stem}.lora_B.weight"], self._scaling(module, len(a))

    def _scaling(self, module: str, rank: int) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        alpha = float(patterns.get(get_pattern_key(patterns.keys(), module), self.config["lora_alpha"]))
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)


def attach_new(encoder: nn.Module, settings: AdapterSettings) -> Any:
    """Wrap the encoder with a fresh trainable adapter that has no effect yet, drawn from torch's global generator.

    Raises:
        TrainingFailed: `bad_target_modules` or `bad_adapter`.
    """
    check_settings(settings)
    targets = resolve_targets(encoder, settings.target_modules)
    if settings.type == "lora":
        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets,
            use_rslora=settings.use_rslora,
            use_dora=settings.use_dora,
        )
        return get_peft_model(encoder, config)
    check_blocks(encoder, targets, settings.oft_block_size)
    # The exact Cayley transform: a truncated Neumann series is faster, but what it yields is no rotation.
    config = OFTConfig(
        oft_block_size=settings.oft_block_size,
        module_dropout=settings.dropout,
        target_modules=targets,
        use_cayley_neumann=False,
    )
    return get_peft_model(encoder, config)


def check_settings(settings: AdapterSettings) -> None:
    """Check what the service has checked too, for whoever uses the engine without it.

    Raises:
        TrainingFailed: `bad_adapter`.
    """
    if settings.type == "oft" and (settings.use_dora or settings.use_rslora):
        problem = "use_dora and use_rslora are options of LoRA; an OFT adapter has neither"
    elif settings.type == "oft" and settings.oft_block_size < 2:
        problem = f"oft_block_size is {settings.oft_block_size}; a rotation needs blocks of 2 at least"
    elif settings.type == "lora" and not 1 <= settings.r <= MAX_RANK:
        problem = f"r is {settings.r}; a rank lies between 1 and {MAX_RANK}"
    elif not 0 <= settings.dropout < 1:
        problem = f"dropout is {settings.dropout}; it lies between 0 and 1, without 1"
    else:
        return
    raise TrainingFailed("bad_adapter", f"the adapter cannot be made: {problem}")


def check_blocks(encoder: nn.Module, targets: str | Sequence[str], block_size: int) -> None:
    """Check that OFT's blocks fill the input of every target; PEFT would pick another size by itself.

    Raises:
        TrainingFailed: `bad_adapter`, naming the first layer that does not divide.
    """
    for name, layer in target_layers(encoder, targets).items():
        if layer.in_features % block_size:
            raise TrainingFailed(
                "bad_adapter",
                f"oft_block_size {block_size} does not divide the {layer.in_features} inputs of {name!r}; "
                "choose a divisor",
                {"layer": name, "in_features": layer.in_features, "oft_block_size": block_size},
            )


def attach(encoder: nn.Module, adapter: Adapter, *, trainable: bool) -> Any:
    """Wrap the encoder with an existing adapter.

    Raises:
        TrainingFailed: `bad_version` when the tensors are not exactly those the configuration calls for.
    """
    peft_type = adapter.config["peft_type"]
    options = {key: adapter.config[key] for key in KEPT_OPTIONS[peft_type] if key in adapter.config}
    resolve_targets(encoder, options["target_modules"])
    model = get_peft_model(encoder, CONFIGS[peft_type](**options))
    wanted = {
        name: tensor.shape
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    given = {name: tensor.shape for name, tensor in adapter.tensors.items()}
    if wanted != given:
        odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise TrainingFailed(
            "bad_version",
            f"the adapter does not fit the base model, first at {odd[0]}",
            {"tensors": odd[:10]},
        )
    set_peft_model_state_dict(model, dict(adapter.tensors))
    if not trainable:
        model.requires_grad_(False)
    return model


def detach(model: Any) -> Adapter:
    """Copy the wrapped encoder's adapter out, on the CPU; the model stays as it is."""
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    config["peft_type"] = config["peft_type"].value
    if not isinstance(config["target_modules"], str):
        config["target_modules"] = sorted(config["target_modules"])
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return Adapter(
        config, {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    )


def adapted_layers(model: Any) -> dict[str, LoraLayer | OFTLayer]:
    """The encoder's adapted layers by module name, in name order."""
    layers = {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer | OFTLayer)
    }
    return dict(sorted(layers.items()))


def delta_weights(model: Any) -> dict[str, Tensor]:
    """ΔW = scaling · B·A [out, in] of each layer under plain LoRA, differentiable in A and B."""
    return {
        name: layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
        for name, layer in adapted_layers(model).items()
    }


def write_adapter(adapter: Adapter, folder: Path, *, base_name: str, revision: str | None) -> None:
    """Write the adapter as PEFT reads it; the base is named as the catalogue names it, never by a path."""
    config = {
        **adapter.config,
        "base_model_name_or_path": base_name,
        "revision": revision,
        "inference_mode": True,
    }
    write_json(folder / CONFIG_FILE, config)
    save_file(dict(adapter.tensors), folder / ADAPTER_FILE, metadata={"format": "pt"})


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter folder: LoRA, DoRA or OFT.

    Raises:
        TrainingFailed: `bad_version` when it is none of these in safetensors, or sets options beyond `KEPT_OPTIONS`.
    """
    config = read_json(folder / CONFIG_FILE, code="bad_version")
    if (
        not isinstance(config, dict)
        or config.get("peft_type") not in CONFIGS
        or not isinstance(config.get("r"), int)
    ):
        raise TrainingFailed("bad_version", f"{CONFIG_FILE} does not describe a LoRA, DoRA or OFT adapter")
    foreign = sorted(foreign_options(config))
    if foreign:
        raise TrainingFailed(
            "bad_version",
            f"{CONFIG_FILE} sets options that are not supported: {', '.join(map(quoted, foreign[:10]))}",
            {"options": foreign[:10]},
        )
    return Adapter(config, read_tensors(folder / ADAPTER_FILE))


def foreign_options(config: Mapping[str, Any]) -> set[str]:
    """The options that are set to something else than nothing or PEFT's default, and that are not known to be safe."""
    peft_type = config["peft_type"]
    defaults = CONFIGS[peft_type]().to_dict()
    known = IDLE_OPTIONS | set(KEPT_OPTIONS[peft_type])
    found = {
        name
        for name, value in config.items()
        if name not in known and value and value != defaults.get(name, None)
    }
    return found - {"init_lora_weights"} if config.get("init_lora_weights") in INITIALISATIONS else found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        TrainingFailed: `bad_version` when it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingFailed(
            "bad_version", f"{path.name} cannot be read: {reason_of(error)}", {"file": path.name}
        ) from error
