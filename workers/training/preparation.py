"""From a request to a run that is ready to train: rows, base, parent, adapter, head."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.strategies.base import Strategy
from workers.training.adapters import attach, attach_new
from workers.training.base_models import (
    check_base,
    check_length,
    load_decoder,
    load_encoder,
    load_tokenizer,
)
from workers.training.batches import Row, TokenTable, read_rows, tokenise
from workers.training.classifier import ClassificationHead, Classifier
from workers.training.contract import AdapterSettings, TrainRequest
from workers.training.dequantising import plain_base
from workers.training.devices import autocast, choose_device
from workers.training.errors import TrainingFailed
from workers.training.language_model import LanguageModel
from workers.training.model import AdaptedModel
from workers.training.run import Parent, Run
from workers.training.sequences import as_table, encode, read_causal_rows
from workers.training.versions import Version, read_version
from workers.training.watching import Watch


def prepare(request: TrainRequest, strategy: Strategy, watch: Watch) -> tuple[Run, str]:
    """Load and check everything an update needs; returns the run and the base checkpoint's SHA-256.

    Raises:
        TrainingFailed: with the code of whatever does not fit.
    """
    watch.at("loading")
    request = replace(request, base=plain_base(request.base))
    sha256 = check_base(request.base)
    # A checkpoint of a run on other weights is no checkpoint of this one.
    request = replace(request, base=replace(request.base, sha256=sha256))
    parent = read_parent(request, strategy, sha256)
    fresh, replay = read_tables(request, watch)
    watch.at("preparing")
    seed, share = request.settings.seed, strategy.validation_fraction
    if parent is None and strategy.validates_parent:
        share = 0.0
    (fresh, held), (replay, held_replay) = fresh.split(share, seed=seed), replay.split(share, seed=seed)
    device = choose_device()
    model = build_model(request, strategy, parent).to(device)
    run = Run(
        request=request,
        model=model,
        device=device,
        autocast=autocast(device, request.settings.precision),
        fresh=fresh,
        replay=replay,
        validation=held.joined(held_replay),
        parent=None
        if parent is None
        else Parent(parent.adapter, parent.head, parent.states.get(strategy.name)),
        watch=watch,
        validation_fresh=len(held),
    )
    return run, sha256


def read_tables(request: TrainRequest, watch: Watch) -> tuple[TokenTable, TokenTable]:
    """Read and tokenise the fresh and the replayed rows.

    Raises:
        TrainingFailed: `sequence_too_long`, or whatever is wrong with the rows.
    """
    tokenizer, max_length = load_tokenizer(request.base), request.settings.max_length
    check_length(max_length, request.base, tokenizer)
    if request.task_type == "causal-lm":
        return causal_tables(request, tokenizer, watch)
    fresh_rows, replay_rows = checked_rows(request)
    total = len(fresh_rows) + len(replay_rows)
    fresh, replay = (
        tokenise(
            rows, tokenizer, labels=request.labels, max_length=max_length,
            poll=lambda done, before=before: watch.at("tokenising", before + done, total),  # type: ignore[misc]  # a default argument binds the loop variable
        )
        for rows, before in ((fresh_rows, 0), (replay_rows, len(fresh_rows)))
    )  # fmt: skip
    return fresh, replay


def causal_tables(request: TrainRequest, tokenizer: Any, watch: Watch) -> tuple[TokenTable, TokenTable]:
    """The same for a language model, whose rows carry no labels."""
    if request.labels:
        raise TrainingFailed("bad_labels", "a causal-lm version has no labels")
    fresh, replay = read_causal_rows(request.fresh), read_causal_rows(request.replay)
    if not fresh:
        raise TrainingFailed("no_fresh_rows", "there is nothing to learn: the fresh rows are empty")
    rows = [*fresh, *replay]
    sequences = encode(
        rows, tokenizer, max_length=request.settings.max_length,
        poll=lambda done: watch.at("tokenising", done, len(rows)),
    )  # fmt: skip
    table = as_table(sequences, [row.id for row in rows], padding_id=tokenizer.pad_token_id)
    return table.take(np.arange(len(fresh))), table.take(np.arange(len(fresh), len(rows)))


def checked_rows(request: TrainRequest) -> tuple[list[Row], list[Row]]:
    """Read the fresh and the replayed rows.

    Raises:
        TrainingFailed: `bad_row`, `no_fresh_rows`, `bad_labels` or `unknown_label`.
    """
    fresh, replay = read_rows(request.fresh), read_rows(request.replay)
    if not fresh:
        raise TrainingFailed("no_fresh_rows", "there is nothing to learn: the fresh rows are empty")
    if len(set(request.labels)) != len(request.labels):
        raise TrainingFailed("bad_labels", "the new version's labels are not distinct")
    unknown = sorted({row.label for row in (*fresh, *replay)} - set(request.labels))
    if unknown:
        raise TrainingFailed(
            "unknown_label", f"rows carry labels that the version will not have: {unknown[:5]}"
        )
    return fresh, replay


def read_parent(request: TrainRequest, strategy: Strategy, sha256: str) -> Version | None:
    """Read the parent version where the strategy starts from one.

    Raises:
        TrainingFailed: `bad_version`, `base_model_changed`, `bad_labels` or `adapters_differ`.
    """
    if request.parent is None or strategy.starts_from == "base":
        return None
    state = Path(request.parent_state) if request.parent_state is not None else None
    parent = read_version(
        Path(request.parent), request.base, task_type=request.task_type, sha256=sha256, state=state
    )
    if request.labels[: len(parent.labels)] != parent.labels:
        raise TrainingFailed(
            "bad_labels", "the new version's labels do not begin with the parent's, in their order"
        )
    if parent.adapter.kind != request.adapter.kind:
        raise TrainingFailed(
            "adapters_differ",
            f"the parent's adapter is of kind {parent.adapter.kind!r}, this update's of kind "
            f"{request.adapter.kind!r}; train with 'joint', or from a parent of the same kind",
        )
    return parent


def build_model(request: TrainRequest, strategy: Strategy, parent: Version | None) -> AdaptedModel:
    """Put the adapter that is to be trained, and a head of the right size where there is one, on the base."""
    torch.manual_seed(request.settings.seed)
    if request.task_type == "causal-lm":
        return LanguageModel(adapted(load_decoder(request.base), request, strategy, parent))
    encoder = load_encoder(request.base)
    labels = len(request.labels)
    if parent is None or parent.head is None:
        head = ClassificationHead(encoder.config.hidden_size, labels)
    else:
        head = parent.head.grow(labels)
    return Classifier(adapted(encoder, request, strategy, parent), head)


def adapted(base: Any, request: TrainRequest, strategy: Strategy, parent: Version | None) -> Any:
    """Wrap the base with the adapter that is to be trained: a new one, the parent's, or a new one over the parent's."""
    if parent is None:
        return attach_new(base, request.adapter)
    if strategy.adapter == "continued":
        return attach(base, parent.adapter, trainable=True)
    merged = attach(base, parent.adapter, trainable=False).merge_and_unload()
    return attach_new(merged, added_shape(request.adapter, parent))


def added_shape(settings: AdapterSettings, parent: Version) -> AdapterSettings:
    """The settings of an adapter that can be added to the parent's: on the same layers."""
    targets = parent.adapter.config["target_modules"]
    return replace(settings, target_modules=targets if isinstance(targets, str) else tuple(targets))
