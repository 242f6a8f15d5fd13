"""Sums of LoRA adapters: scale one, add two up, average two, compress one. All of it is about ΔW = scaling · B·A."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workers.training.adapters import PEFT_PREFIX, Adapter
from workers.training.errors import TrainingFailed

NEGLIGIBLE = 1e-5
"""Singular values below this share of a layer's largest one are rounding."""


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """Return the adapter whose ΔW is `factor` times this one's; only B changes."""
    plain_lora(adapter)
    tensors = {
        name: tensor * factor if name.endswith(".lora_B.weight") else tensor
        for name, tensor in adapter.tensors.items()
    }
    return replace(adapter, tensors=tensors)


def concatenate(first: Adapter, second: Adapter) -> Adapter:
    """Return the one adapter whose ΔW is the sum of both, exactly: ranks side by side, scalings folded into B.

    With A = [A₁; A₂] and B = [s₁B₁, s₂B₂], B·A = s₁B₁A₁ + s₂B₂A₂ and the new scaling is 1. Scalings that are
    powers of two (the default is 16 / 8) fold without any rounding.

    Raises:
        TrainingFailed: `adapters_differ` when the two do not adapt the same layers, or are not plain LoRA.
    """
    left, right = list(plain_lora(first).factors()), list(plain_lora(second).factors())
    if [name for name, *_ in left] != [name for name, *_ in right]:
        raise TrainingFailed(
            "adapters_differ", "the parent's adapter sits on other layers than this update's"
        )
    tensors, rank = {}, first.rank + second.rank
    for (name, a1, b1, s1), (_, a2, b2, s2) in zip(left, right, strict=True):
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = _padded(torch.cat([a1, a2]), rank, 0)
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = _padded(torch.cat([b1 * s1, b2 * s2], dim=1), rank, 1)
    return Adapter(_with_rank(second.config, rank), tensors)


def average(first: Adapter, second: Adapter, weight: float, *, max_rank: int) -> tuple[Adapter, float]:
    """Return the adapter whose ΔW is (1 − `weight`)·ΔW₁ + `weight`·ΔW₂, and its compression's relative error.

    The average is taken of the products: averaging A and B entry by entry would add the cross terms B₁A₂ and B₂A₁,
    and would depend on which of the equivalent factors of each ΔW happened to be stored.

    Raises:
        TrainingFailed: `adapters_differ` when the two do not adapt the same layers, or are not plain LoRA.
    """
    return compress(concatenate(scaled(first, 1 - weight), scaled(second, weight)), max_rank)


def compress(adapter: Adapter, max_rank: int) -> tuple[Adapter, float]:
    """Return the best adapter of rank `max_rank` at most, and ‖ΔW − ΔW′‖ / ‖ΔW‖ (Frobenius, over all layers).

    The truncated SVD of each ΔW in float32 (Eckart-Young). An adapter within the bound comes back untouched, with
    error 0.
    """
    if adapter.rank <= max_rank:
        return adapter, 0.0
    tensors: dict[str, Tensor] = {}
    lost = total = 0.0
    for name, (u, s, vh) in singular_factors(adapter).items():
        root = s[:max_rank].sqrt()
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = _padded(root[:, None] * vh[:max_rank], max_rank, 0)
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = _padded(u[:, :max_rank] * root, max_rank, 1)
        lost += float(s[max_rank:].square().sum())
        total += float(s.square().sum())
    return Adapter(_with_rank(adapter.config, max_rank), tensors), (lost / total) ** 0.5 if total else 0.0


def row_spaces(adapter: Adapter) -> dict[str, Tensor]:
    """An orthonormal basis [k, in] of the row space of each layer's ΔW, whatever the scale of its factors."""
    spaces = {}
    for name, (_, s, vh) in singular_factors(adapter).items():
        spaces[name] = vh[s > NEGLIGIBLE * s.max()].contiguous()
    return spaces


def singular_factors(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The thin SVD (U [out, k], S [k], Vᵀ [k, in]) of each layer's ΔW in float32.

    Taken through QR of the thin factors, so that no full-size matrix is decomposed.
    """
    factors = {}
    for name, a, b, scaling in plain_lora(adapter).factors():
        q_out, r_out = torch.linalg.qr(b.float() * scaling)
        q_in, r_in = torch.linalg.qr(a.float().T)
        u, s, vh = torch.linalg.svd(r_out @ r_in.T, full_matrices=False)
        factors[name] = (q_out @ u, s, vh @ q_in.T)
    return factors


def plain_lora(adapter: Adapter) -> Adapter:
    """Return the adapter as it came. Raises `TrainingFailed` (`adapters_differ`) when its ΔW is not scaling · B·A."""
    if adapter.kind != "lora":
        raise TrainingFailed(
            "adapters_differ",
            f"adapters of kind {adapter.kind!r} cannot be added up; only plain LoRA can",
        )
    return adapter


def _padded(tensor: Tensor, rank: int, dim: int) -> Tensor:
    """Fill up with zeros to `rank`: narrow layers have fewer singular values, and ranks may differ by layer."""
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
