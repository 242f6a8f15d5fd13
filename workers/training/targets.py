"""Which layers of an encoder an adapter sits on: `auto`, a list of names or name endings, a regular expression."""

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

from torch import nn

from workers.training.errors import TrainingFailed

ATTENTION_PROJECTIONS = (
    "query", "value",  # BERT, RoBERTa, ELECTRA
    "q_proj", "v_proj",  # Llama and its kin, BART
    "q_lin", "v_lin",  # DistilBERT
    "query_proj", "value_proj",  # DeBERTa v2
    "in_proj",  # DeBERTa v1
    "Wqkv", "qkv_proj", "query_key_value",  # fused: ModernBERT, Phi, GPT-NeoX
)  # fmt: skip
"""Query and value, the pair that served LoRA best at equal size (arXiv 2106.09685, section 7.1)."""


def resolve_targets(encoder: nn.Module, wanted: str | Sequence[str]) -> str | list[str]:
    """Return PEFT's `target_modules` for this encoder: name endings, or the regular expression as it came.

    Raises:
        TrainingFailed: `bad_target_modules` when a pattern matches no linear layer, or anything else as well.
    """
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    if wanted == "auto":
        found = sorted({name.rsplit(".", 1)[-1] for name in linear} & set(ATTENTION_PROJECTIONS))
        return found or _no_match("auto", linear)
    patterns = [wanted] if isinstance(wanted, str) else wanted
    for pattern in patterns:
        if not any(_matches(wanted, pattern, name) for name in linear):
            _no_match(pattern, linear)
    _check_linear(encoder, wanted, patterns)
    if isinstance(wanted, str):
        return wanted
    return sorted(wanted) or _no_match("[]", linear)


def target_layers(encoder: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers by name that `targets`, as `resolve_targets` returns them, stand for."""
    patterns = [targets] if isinstance(targets, str) else targets
    return {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and any(_matches(targets, pattern, name) for pattern in patterns)
    }


def _check_linear(encoder: nn.Module, wanted: str | Sequence[str], patterns: Sequence[str]) -> None:
    """Check that nothing but linear layers matches: PEFT would adapt an embedding, whose tensors no sum here knows."""
    for pattern, (name, module) in product(patterns, encoder.named_modules()):
        if not isinstance(module, nn.Linear) and _matches(wanted, pattern, name):
            raise TrainingFailed(
                "bad_target_modules",
                f"target_modules {pattern!r} also matches {name!r}, which is a {type(module).__name__}; "
                "only linear layers can be adapted: name them more closely",
                {"pattern": pattern, "module": name},
            )


def _matches(wanted: str | Sequence[str], pattern: str, name: str) -> bool:
    """PEFT's own rule: one string is a regular expression over the whole name, one of several a name or its ending."""
    if not isinstance(wanted, str):
        return name == pattern or name.endswith("." + pattern)
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
