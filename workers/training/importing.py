"""An adapter that was trained elsewhere, made a version: checked against the base, and written as versions are. Nothing is trained."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from workers.training.adapters import Adapter, attach, detach, read_adapter
from workers.training.base_models import check_base, check_length, load_decoder, load_encoder, load_tokenizer
from workers.training.classifier import ClassificationHead
from workers.training.contract import AdapterSettings, TrainRequest, TrainResult
from workers.training.dequantising import plain_base
from workers.training.devices import device_name
from workers.training.errors import TrainingFailed, quoted
from workers.training.folders import read_json
from workers.training.language_model import LanguageModel
from workers.training.untrained import CPU, untrained
from workers.training.versions import (
    CLASSIFIER_FACTS,
    Version,
    facts_of,
    read_head,
    write_version,
)
from workers.training.watching import OnProgress, ShouldStop, Watch

IMPORT = "import"
ORIGIN = ("base_model", "strategy", "parameters", "seed", "lineage", "packages", "device")
"""What is kept of an uploaded `version.json`, as its own word."""
MOST_ORIGIN_BYTES, DEEPEST_ORIGIN = 64 * 1024, 32


def import_adapter(request: TrainRequest, *, on_progress: OnProgress, should_stop: ShouldStop) -> TrainResult:
    """Write the adapter in `request.upload` to `request.output` as a version.

    It goes onto the base by the way that every version goes, and is copied off again: what is written is what was loaded, in
    float32. The strategy's state is absent.

    Raises:
        TrainingFailed: `wrong_base_model`, `unsupported_head`, `adapter_kind_differs`, `adapter_does_not_fit`,
            `head_does_not_fit`, `bad_numbers`, `sequence_too_long`, or whatever is wrong with the base on this machine.
        Cancelled, Stopped: as asked through `should_stop`.
    """
    began = time.monotonic()
    watch = Watch(on_progress, should_stop)
    watch.at("loading")
    request = replace(request, base=plain_base(request.base))
    sha256, folder = check_base(request.base), Path(request.upload or "")
    facts = uploaded_facts(folder, sha256)
    check_length(request.settings.max_length, request.base, load_tokenizer(request.base))
    head = None if request.task_type == "causal-lm" else uploaded_head(folder, request.labels)
    watch.at("preparing")
    adapter = fitted_adapter(request, folder, head)
    watch.at("saving")
    ours = facts_of(
        request,
        sha256=sha256,
        extra={
            "training": {"max_length": request.settings.max_length},
            "seed": None,
            "rank": adapter.rank,
            "device": device_name(CPU),
            "origin": origin_of(facts),
        },
    )
    write_version(Path(request.output), Version(adapter, head, request.labels, ours))
    return untrained(request.labels, seconds=time.monotonic() - began)


def uploaded_facts(folder: Path, sha256: str) -> Mapping[str, Any]:
    """Read the upload's `version.json`, if there is one, and check what it says of base and head.

    Raises:
        TrainingFailed: `wrong_base_model` or `unsupported_head`.
    """
    if not (folder / "version.json").exists():
        return {}
    facts: dict[str, Any] = read_json(folder / "version.json", code="bad_version_file")
    base = facts.get("base_model")
    recorded = base.get("sha256") if isinstance(base, dict) else None
    if recorded is not None and recorded != sha256:
        raise TrainingFailed(
            "wrong_base_model",
            f"version.json says that the adapter was trained on a base model whose files have the hash {quoted(recorded)}; the model's "
            f"have {sha256}: import it into a model on that base",
        )
    for name, wanted in CLASSIFIER_FACTS.items():
        if facts.get(name, wanted) != wanted:
            raise TrainingFailed(
                "unsupported_head",
                f"version.json says {name}: {quoted(facts[name])}; a head here sees {CLASSIFIER_FACTS}, see docs/importing.md",
            )
    return facts


def origin_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an uploaded `version.json`; a note in its place where the version's own could not be imported again."""
    origin = {name: facts[name] for name in ORIGIN if name in facts}
    try:
        size = len(json.dumps(origin, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        return {"left_out": "the uploaded version.json holds what is not JSON in UTF-8"}
    if size > MOST_ORIGIN_BYTES or nested_deeper(origin, than=DEEPEST_ORIGIN):
        return {
            "left_out": f"the uploaded version.json says more than {MOST_ORIGIN_BYTES} bytes or {DEEPEST_ORIGIN} levels of it"
        }
    return origin


def nested_deeper(value: object, *, than: int) -> bool:
    """Says whether a JSON value has more than so many levels."""
    level = [value]
    for _ in range(than + 1):
        level = [
            part
            for item in level
            if isinstance(item, dict | list)
            for part in (item.values() if isinstance(item, dict) else item)
        ]
    return bool(level)


def uploaded_head(folder: Path, labels: tuple[str, ...]) -> ClassificationHead:
    """Read the head.

    Raises:
        TrainingFailed: `head_does_not_fit` or `bad_numbers`.
    """
    try:
        head = read_head(folder, labels)
    except TrainingFailed as error:
        raise TrainingFailed("head_does_not_fit", error.message, error.detail) from error
    require_finite(head.state_dict(), file="head.safetensors")
    return head.float()


def fitted_adapter(request: TrainRequest, folder: Path, head: ClassificationHead | None) -> Adapter:
    """Put the upload's adapter onto the base and take it off again: every tensor used, none missing, all of the right shape.

    Raises:
        TrainingFailed: `adapter_kind_differs`, `adapter_does_not_fit`, `head_does_not_fit` or `bad_numbers`.
    """
    try:
        adapter = read_adapter(folder)
        require_finite(adapter.tensors, file="adapter_model.safetensors")
        require_kind(adapter, request.adapter)
        base = load_encoder(request.base) if head is not None else load_decoder(request.base)
        model = attach(base, adapter, trainable=False)
        if head is None:
            LanguageModel(model)  # which an adapter of the output layer does not go with
    except TrainingFailed as error:
        code = error.code if error.code in ("bad_numbers", "adapter_kind_differs") else "adapter_does_not_fit"
        raise TrainingFailed(code, error.message, error.detail) from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # what PEFT raises at odd configurations
        raise TrainingFailed("adapter_does_not_fit", f"PEFT cannot load the adapter: {error}") from error
    width = base.config.hidden_size
    if head is not None and head.weight.shape[1] != width:
        raise TrainingFailed(
            "head_does_not_fit",
            f"the head in head.safetensors takes features of width {head.weight.shape[1]}; the base model's have {width}",
        )
    return with_dropout(detach(model), request.adapter)


def require_kind(adapter: Adapter, settings: AdapterSettings) -> None:
    """Raises `TrainingFailed` (`adapter_kind_differs`) where the model's strategies could not go on from the adapter."""
    if adapter.kind != settings.kind:
        raise TrainingFailed(
            "adapter_kind_differs",
            f"the adapter is of kind {adapter.kind!r}, the model's adapters are of kind {settings.kind!r}",
        )


def require_finite(tensors: Mapping[str, Tensor], *, file: str) -> None:
    """Raises `TrainingFailed` (`bad_numbers`) at the first tensor with a NaN or an infinity, or what float32 cannot hold."""
    for name in sorted(tensors):
        if not math.isfinite(float(tensors[name].float().abs().max())):
            raise TrainingFailed(
                "bad_numbers",
                f"{quoted(name)} in {file} holds NaN or infinity: the run that trained it broke; upload an earlier checkpoint of it",
                {"tensor": name},
            )


def with_dropout(adapter: Adapter, settings: AdapterSettings) -> Adapter:
    """Return the adapter with the model's dropout, which later updates train with; the upload's was its own run's."""
    option = "module_dropout" if settings.type == "oft" else "lora_dropout"
    return replace(adapter, config={**adapter.config, option: settings.dropout})
