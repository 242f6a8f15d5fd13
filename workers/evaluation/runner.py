"""Score a version on an eval set: one answer per row, the same wherever the version is loaded."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workers.evaluation.causal import causal_outcomes
from workers.evaluation.kept import kept
from workers.training.adapters import attach
from workers.training.base_models import check_base, check_length, load_encoder, load_tokenizer
from workers.training.batches import UNSEEN, Pick, TokenTable, collate, in_length_order, read_rows, tokenise
from workers.training.classifier import Classifier
from workers.training.contract import EvaluateRequest, Outcomes
from workers.training.dequantising import plain_base
from workers.training.devices import autocast, choose_device
from workers.training.errors import TrainingFailed
from workers.training.versions import Version, read_version
from workers.training.watching import OnProgress, ShouldStop, Watch

CLOSE_CALL = 1e-2
"""Logit margin under which padding, batching and merging, which only change rounding, could change an answer."""


def evaluate(request: EvaluateRequest, *, on_progress: OnProgress, should_stop: ShouldStop) -> Outcomes:
    """Answer every row of `request.rows`, with the adapter merged and rows batched by length.

    Language models: see `workers.evaluation.causal`. A classified row whose two best logits are closer than rounding
    can tell is predicted again as a plain load of the version would do it: alone, unpadded, with the adapter beside the weights. So no answer depends on which
    rows happened to share its batch.

    Raises:
        TrainingFailed: the version or the rows do not fit; `code` says why.
        Cancelled, Stopped: as asked through `should_stop`.
    """
    began = time.monotonic()
    watch = Watch(on_progress, should_stop)
    watch.at("loading")
    request = replace(request, base=plain_base(request.base))
    if request.task_type == "causal-lm":
        return causal_outcomes(request, watch, began=began)
    if request.task_type != "text-classification":
        raise TrainingFailed("unknown_task_type", f"cannot evaluate task type {request.task_type!r}")
    if request.version is None:
        raise TrainingFailed("no_head", "the untouched base of a classifier has no head to answer with")
    version = read_version(
        Path(request.version), request.base, task_type=request.task_type, sha256=check_base(request.base)
    )
    table = tokenised(request, version, watch)
    logits = all_logits(request, version, table, watch)
    predicted = logits.argmax(1)
    correct = predicted.numpy() == table.labels
    return Outcomes(
        example_ids=tuple(table.ids.tolist()),
        predicted=tuple(predicted.tolist()),
        confidence=tuple(logits.softmax(1).amax(1).tolist()),
        correct=tuple(correct.tolist()),
        labels=version.labels,
        seconds=time.monotonic() - began,
        likelihoods=tuple(likelihoods(logits, table).tolist()),
    )


def tokenised(request: EvaluateRequest, version: Version, watch: Watch) -> TokenTable:
    """Read and tokenise the rows to score."""
    tokenizer = load_tokenizer(request.base)
    max_length = request.max_length or version.max_length
    check_length(max_length, request.base, tokenizer)
    rows = read_rows(request.rows)
    return tokenise(
        rows,
        tokenizer,
        labels=version.labels,
        max_length=max_length,
        poll=lambda done: watch.at("tokenising", done, len(rows)),
    )


def likelihoods(logits: Tensor, table: TokenTable) -> Tensor:
    """The probability [rows] of every row's own label, 0 where the version has never seen it."""
    known = torch.as_tensor(table.labels != UNSEEN)
    places = torch.as_tensor(table.labels).clamp(min=0)[:, None]
    return logits.softmax(1).gather(1, places)[:, 0] * known


@torch.inference_mode()
def all_logits(request: EvaluateRequest, version: Version, table: TokenTable, watch: Watch) -> Tensor:
    """Logits [rows, labels] in table order, on the CPU."""
    device = choose_device()
    precision = "fp32" if request.precision == "auto" else request.precision
    context = autocast(device, precision)
    model = kept(request, lambda: loaded(request, version, device, merged=True))
    logits = torch.zeros(len(table), len(version.labels))
    done = 0
    for pick in in_length_order(table, request.batch_size):
        watch.at("evaluating", done, len(table))
        with context():
            logits[pick.fresh] = model(collate(table, table, pick).to(device)).float().cpu()
        done += len(pick.fresh)
    watch.at("evaluating", done, len(table))
    close = close_calls(logits)
    if len(close) and precision == "fp32":
        decide_alone(loaded(request, version, device, merged=False), table, close, logits, watch)
    return logits


def loaded(request: EvaluateRequest, version: Version, device: torch.device, *, merged: bool) -> Classifier:
    """The version's model in evaluation mode, its adapter merged into the weights or beside them."""
    if version.head is None:
        raise TrainingFailed("bad_version", "the version has no classification head")
    encoder = attach(load_encoder(request.base), version.adapter, trainable=False)
    if merged:
        encoder = encoder.merge_and_unload()
    return Classifier(encoder, version.head).eval().to(device)


def close_calls(logits: Tensor) -> Sequence[int]:
    """The rows whose best two logits are closer than `CLOSE_CALL`."""
    if logits.shape[1] < 2:
        return []
    best = logits.topk(2, dim=1).values
    return [int(row) for row in torch.nonzero(best[:, 0] - best[:, 1] < CLOSE_CALL)[:, 0]]


def decide_alone(
    model: Classifier, table: TokenTable, rows: Sequence[int], logits: Tensor, watch: Watch
) -> None:
    """Overwrite these rows' logits with those of a forward of the row by itself."""
    nothing = np.zeros(0, dtype=np.int64)
    for row in rows:
        watch.obey()
        batch = collate(table, table, Pick(np.array([row]), nothing, nothing)).to(model.head.bias.device)
        logits[row] = model(batch)[0].float().cpu()
