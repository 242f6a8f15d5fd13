"""From a request to a run that is ready to train: rows, base, parent, adapter, head."""

from dataclasses import replace
from pathlib import Path

import torch

from workers.strategies.base import Strategy
from workers.training.adapters import attach, attach_new
from workers.training.base_models import check_base, check_length, load_encoder, load_tokenizer
from workers.training.batches import Row, read_rows, tokenise
from workers.training.classifier import ClassificationHead, Classifier
from workers.training.contract import AdapterSettings, TrainRequest
from workers.training.devices import autocast, choose_device
from workers.training.errors import TrainingFailed
from workers.training.run import Parent, Run
from workers.training.versions import Version, read_version
from workers.training.watching import Watch


def prepare(request: TrainRequest, strategy: Strategy, watch: Watch) -> tuple[Run, str]:
    """Load and check everything an update needs; returns the run and the base checkpoint's SHA-256.

    Raises:
        TrainingFailed: with the code of whatever does not fit.
    """
    watch.at("loading")
    sha256 = check_base(request.base)
    fresh_rows, replay_rows = checked_rows(request)
    parent = read_parent(request, strategy, sha256)
    tokenizer = load_tokenizer(request.base)
    check_length(request.settings.max_length, request.base, tokenizer)
    total = len(fresh_rows) + len(replay_rows)
    fresh, replay = (
        tokenise(
            rows, tokenizer, labels=request.labels, max_length=request.settings.max_length,
            poll=lambda done, before=before: watch.at("tokenising", before + done, total),  # type: ignore[misc]  # a default argument binds the loop variable
        )
        for rows, before in ((fresh_rows, 0), (replay_rows, len(fresh_rows)))
    )  # fmt: skip
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
    parent = read_version(Path(request.parent), request.base, sha256=sha256, state=state)
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


def build_model(request: TrainRequest, strategy: Strategy, parent: Version | None) -> Classifier:
    """Put the adapter that is to be trained and a head of the right size on the base."""
    torch.manual_seed(request.settings.seed)
    encoder = load_encoder(request.base)
    if parent is None:
        head = ClassificationHead(encoder.config.hidden_size, len(request.labels))
        return Classifier(attach_new(encoder, request.adapter), head)
    head = parent.head.grow(len(request.labels))
    if strategy.adapter == "continued":
        return Classifier(attach(encoder, parent.adapter, trainable=True), head)
    merged = attach(encoder, parent.adapter, trainable=False).merge_and_unload()
    return Classifier(attach_new(merged, added_shape(request.adapter, parent)), head)


def added_shape(settings: AdapterSettings, parent: Version) -> AdapterSettings:
    """The settings of an adapter that can be added to the parent's: on the same layers."""
    targets = parent.adapter.config["target_modules"]
    return replace(settings, target_modules=targets if isinstance(targets, str) else tuple(targets))
