"""LoRA adapters: attach them to an encoder, take them off as plain tensors, add two up, compress one."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workers.training.contract import AdapterSettings
from workers.training.errors import TrainingFailed
from workers.training.folders import read_json, write_json

# PEFT asks transformers under a name that transformers is about to drop; nothing here depends on the answer.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

ATTENTION_PROJECTIONS = (
    "query", "value",  # BERT, RoBERTa, ELECTRA
    "q_proj", "v_proj",  # Llama and its kin, BART
    "q_lin", "v_lin",  # DistilBERT
    "query_proj", "value_proj",  # DeBERTa v2
    "in_proj",  # DeBERTa v1
    "Wqkv", "qkv_proj", "query_key_value",  # fused: ModernBERT, Phi, GPT-NeoX
)  # fmt: skip
"""Query and value, the pair that served LoRA best at equal size (arXiv 2106.09685, section 7.1)."""

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PEFT_PREFIX = "base_model.model."

KEPT_OPTIONS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
)
"""What is read from an `adapter_config.json`; its other options could load code or reach outside the folder."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One PEFT adapter off its model: its configuration and its tensors under PEFT's own names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        """The adapter's rank."""
        return int(self.config["r"])

    def factors(self) -> Iterator[tuple[str, Tensor, Tensor, float]]:
        """Yield (module name, A [r, in], B [out, r], scaling), in name order; ΔW = scaling · B·A."""
        rank_root = self.rank**0.5 if self.config.get("use_rslora") else self.rank
        for name in sorted(self.tensors):
            if name.endswith(".lora_A.weight"):
                stem = name.removesuffix(".lora_A.weight")
                b = self.tensors[f"{stem}.lora_B.weight"]
                yield (
                    stem.removeprefix(PEFT_PREFIX),
                    self.tensors[name],
                    b,
                    self.config["lora_alpha"] / rank_root,
                )


def resolve_targets(encoder: nn.Module, wanted: str | Sequence[str]) -> str | list[str]:
    """Return PEFT's `target_modules` for this encoder: name endings, or the regular expression as it came.

    Raises:
        TrainingFailed: `bad_target_modules` when a pattern matches no linear layer.
    """
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    if wanted == "auto":
        found = sorted({name.rsplit(".", 1)[-1] for name in linear} & set(ATTENTION_PROJECTIONS))
        return found or _no_match("auto", linear)
    if isinstance(wanted, str):
        return wanted if any(_matches(wanted, name) for name in linear) else _no_match(wanted, linear)
    for ending in wanted:
        if not any(name == ending or name.endswith("." + ending) for name in linear):
            _no_match(ending, linear)
    return sorted(wanted) or _no_match("[]", linear)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise TrainingFailed(
            "bad_target_modules", f"target_modules {pattern!r} is no regular expression: {error}"
        ) from error


def _no_match(pattern: str, linear: Sequence[str]) -> Any:
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    raise TrainingFailed(
        "bad_target_modules",
        f"target_modules {pattern!r} matches no linear layer of the encoder; its layers end in {', '.join(known)}",
        {"pattern": pattern, "endings": known},
    )


def attach_new(encoder: nn.Module, settings: AdapterSettings) -> Any:
    """Wrap the encoder with a fresh trainable adapter, drawn from torch's global generator (B = 0: no effect yet).

    Raises:
        TrainingFailed: `bad_target_modules`.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=resolve_targets(encoder, settings.target_modules),
    )
    return get_peft_model(encoder, config)


def attach(encoder: nn.Module, adapter: Adapter, *, trainable: bool) -> Any:
    """Wrap the encoder with an existing adapter.

    Raises:
        TrainingFailed: `bad_version` when the tensors are not exactly those the configuration calls for.
    """
    options = {key: adapter.config[key] for key in KEPT_OPTIONS if key in adapter.config}
    resolve_targets(encoder, options["target_modules"])
    model = get_peft_model(encoder, LoraConfig(**options))
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
    config["peft_type"] = "LORA"
    if not isinstance(config["target_modules"], str):
        config["target_modules"] = sorted(config["target_modules"])
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return Adapter(
        config, {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    )


def adapted_layers(model: Any) -> dict[str, LoraLayer]:
    """The encoder's adapted layers by module name, in name order."""
    layers = {
        name.removeprefix(PEFT_PREFIX): m for name, m in model.named_modules() if isinstance(m, LoraLayer)
    }
    return dict(sorted(layers.items()))


def delta_weights(model: Any) -> dict[str, Tensor]:
    """ΔW = scaling · B·A [out, in] of each adapted layer, differentiable in A and B."""
    return {
        name: layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
        for name, layer in adapted_layers(model).items()
    }


def concatenate(first: Adapter, second: Adapter) -> Adapter:
    """Return the one adapter whose ΔW is the sum of both, exactly: ranks side by side, scalings folded into B.

    With A = [A₁; A₂] and B = [s₁B₁, s₂B₂], B·A = s₁B₁A₁ + s₂B₂A₂ and the new scaling is 1. Scalings that are
    powers of two (the default is 16 / 8) fold without any rounding.

    Raises:
        TrainingFailed: `adapters_differ` when the two do not adapt the same layers.
    """
    left, right = list(first.factors()), list(second.factors())
    if [name for name, *_ in left] != [name for name, *_ in right]:
        raise TrainingFailed(
            "adapters_differ", "the parent's adapter sits on other layers than this update's"
        )
    tensors = {}
    for (name, a1, b1, s1), (_, a2, b2, s2) in zip(left, right, strict=True):
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = torch.cat([a1, a2])
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = torch.cat([b1 * s1, b2 * s2], dim=1)
    return Adapter(_with_rank(second.config, first.rank + second.rank), tensors)


def compress(adapter: Adapter, max_rank: int) -> tuple[Adapter, float]:
    """Return the best adapter of rank `max_rank` at most, and ‖ΔW − ΔW′‖ / ‖ΔW‖ (Frobenius, over all layers).

    The truncated SVD of each ΔW in float32 (Eckart-Young), taken through QR of the thin factors so that no
    full-size matrix is decomposed. An adapter within the bound comes back untouched, with error 0.
    """
    if adapter.rank <= max_rank:
        return adapter, 0.0
    tensors: dict[str, Tensor] = {}
    lost = total = 0.0
    for name, a, b, scaling in adapter.factors():
        q_out, r_out = torch.linalg.qr(b.float() * scaling)
        q_in, r_in = torch.linalg.qr(a.float().T)
        u, s, vh = torch.linalg.svd(r_out @ r_in.T)
        root = s[:max_rank].sqrt()
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = _padded(
            (root[:, None] * vh[:max_rank]) @ q_in.T, max_rank, 0
        )
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = _padded(q_out @ (u[:, :max_rank] * root), max_rank, 1)
        lost += float(s[max_rank:].square().sum())
        total += float(s.square().sum())
    return Adapter(_with_rank(adapter.config, max_rank), tensors), (lost / total) ** 0.5 if total else 0.0


def _padded(tensor: Tensor, rank: int, dim: int) -> Tensor:
    """Fill up with zeros to `rank`: layers narrower than that have fewer singular values."""
    missing = list(tensor.shape)
    missing[dim] = rank - tensor.shape[dim]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim=dim).contiguous()


def _with_rank(config: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The configuration of a sum: scaling 1 under either way PEFT scales."""
    return {
        **config,
        "r": rank,
        "lora_alpha": float(rank),
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
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
    """Read a PEFT LoRA adapter folder.

    Raises:
        TrainingFailed: `bad_version` when it is no LoRA adapter in safetensors.
    """
    config = read_json(folder / CONFIG_FILE, code="bad_version")
    if (
        not isinstance(config, dict)
        or config.get("peft_type") != "LORA"
        or not isinstance(config.get("r"), int)
    ):
        raise TrainingFailed("bad_version", f"{CONFIG_FILE} does not describe a LoRA adapter")
    if config.get("use_dora") or config.get("bias", "none") != "none" or config.get("modules_to_save"):
        raise TrainingFailed(
            "bad_version", "adapters with DoRA, biases or whole saved modules are not supported"
        )
    return Adapter(config, read_tensors(folder / ADAPTER_FILE))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        TrainingFailed: `bad_version` when it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingFailed(
            "bad_version", f"{path.name} cannot be read: {error}", {"file": path.name}
        ) from error
