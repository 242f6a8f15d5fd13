"""Score a language model: how likely it finds every answer, and whether it would give it itself.

One teacher-forced forward answers both. Greedy decoding takes the likeliest token at every step, given what it has
taken before; so it gives the reference answer, its end included, exactly when each of the answer's tokens is the likeliest
one after the tokens before it. Nothing has to be generated. Another spelling of the answer in tokens counts as
another answer.

Rows are batched by length, which changes rounding alone: likelihoods agree to about 1e-5 nats whatever shares the
batch, and `correct` can differ only where two tokens are as close as that.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.evaluation.kept import kept
from workers.training.adapters import attach
from workers.training.base_models import (
    check_base,
    check_length,
    load_decoder,
    load_tokenizer,
    longest_sequence,
)
from workers.training.batches import Pick, TokenTable, in_length_order
from workers.training.contract import EvaluateRequest, Outcomes
from workers.training.devices import autocast, choose_device
from workers.training.language_model import LanguageModel
from workers.training.packing import pack
from workers.training.sequences import as_table, encode, read_causal_rows
from workers.training.versions import Version, read_version
from workers.training.watching import Watch

GRADED_TOKENS = 1024
"""Longest row that is graded whole: one length for all versions, since a mean over other tokens is another yardstick."""

LARGEST_EXPONENT = 700.0
"""Beyond it a perplexity is no float any more: the model has diverged, and a report must still be able to say so."""

TOKENS_PER_BATCH = 2048
"""Bounds a batch besides its rows: logits over a vocabulary of 50,000 take 200 kB per answer token."""


@dataclass(frozen=True, slots=True)
class Grades:
    """Per row: summed log-likelihood of its answer tokens in nats, their number, and whether all were the likeliest."""

    log_likelihood: NDArray[np.float64]
    tokens: NDArray[np.int64]
    greedy: NDArray[np.bool_]


def causal_outcomes(request: EvaluateRequest, watch: Watch, *, began: float) -> Outcomes:
    """Grade every row of `request.rows` by the version, or by the untouched base; see `Outcomes` for the measures.

    Raises:
        TrainingFailed: the version or the rows do not fit; `code` says why.
    """
    sha256 = check_base(request.base)
    version = None
    if request.version is not None:
        version = read_version(
            Path(request.version), request.base, task_type=request.task_type, sha256=sha256
        )
    table, prompted, whole = tokenised(request, version, watch)
    grades = graded(request, version, table, watch)
    mean = grades.log_likelihood / np.maximum(1, grades.tokens)
    correct = grades.greedy & prompted & whole & (grades.tokens > 0)
    return Outcomes(
        example_ids=tuple(table.ids.tolist()),
        predicted=(-1,) * len(table),
        confidence=tuple(np.exp(mean).tolist()),
        correct=tuple(correct.tolist()),
        labels=(),
        seconds=time.monotonic() - began,
        graded=tuple(mean.tolist()),
        measures=measures(grades, correct, prompted),
    )


def measures(grades: Grades, correct: NDArray[np.bool_], prompted: NDArray[np.bool_]) -> Mapping[str, float]:
    """The set's perplexity exp(-sum log p / sum tokens), mean token log-likelihood, and share of exact answers."""
    if grades.tokens.sum() == 0:
        return {}
    mean = float(grades.log_likelihood.sum() / grades.tokens.sum())
    found = {"perplexity": float(np.exp(min(-mean, LARGEST_EXPONENT))), "mean_log_likelihood": mean}
    if prompted.any():
        found["exact_match"] = float(correct[prompted].mean())
    return found


def tokenised(
    request: EvaluateRequest, version: Version | None, watch: Watch
) -> tuple[TokenTable, NDArray[np.bool_], NDArray[np.bool_]]:
    """The rows as a table; which of them ask for an answer; which have all of theirs within the maximum length."""
    tokenizer = load_tokenizer(request.base)
    max_length = request.max_length or min(GRADED_TOKENS, longest_sequence(request.base, tokenizer))
    check_length(max_length, request.base, tokenizer)
    rows = read_causal_rows(request.rows)
    sequences = encode(
        rows, tokenizer, max_length=max_length, poll=lambda done: watch.at("tokenising", done, len(rows)),
        unanswered=True,
    )  # fmt: skip
    return (
        as_table(sequences, [row.id for row in rows], padding_id=tokenizer.pad_token_id),
        np.array([row.prompted for row in rows], dtype=np.bool_),
        np.array([sequence.whole for sequence in sequences], dtype=np.bool_),
    )


@torch.inference_mode()
def graded(request: EvaluateRequest, version: Version | None, table: TokenTable, watch: Watch) -> Grades:
    """Grade the rows in table order, with the adapter merged into the weights."""
    device = choose_device()
    context = autocast(device, "fp32" if request.precision == "auto" else request.precision)
    model = kept(request, lambda: loaded(request, version).to(device))
    grades = Grades(
        np.zeros(len(table)), np.zeros(len(table), dtype=np.int64), np.zeros(len(table), dtype=np.bool_)
    )
    done = 0
    for pick in bounded(table, request.batch_size):
        watch.at("evaluating", done, len(table))
        batch = pack(table, table, pick, packed=False).to(device)
        with context():
            logits = model(batch)
        grade(grades, pick, logits, batch.labels, batch.rows)
        done += len(pick.fresh)
    watch.at("evaluating", done, len(table))
    return grades


def loaded(request: EvaluateRequest, version: Version | None) -> LanguageModel:
    """The base in evaluation mode, with the version's adapter merged into its weights where there is one."""
    decoder = load_decoder(request.base)
    if version is not None:
        decoder = attach(decoder, version.adapter, trainable=False).merge_and_unload()
    model = LanguageModel(decoder)
    model.eval()
    return model


def grade(grades: Grades, pick: Pick, logits: Tensor, answers: Tensor, rows: Tensor) -> None:
    """Write one batch's grades, from logits [n, vocabulary] for `answers` [n] of the batch's `rows` [n]."""
    log_p = logits.gather(1, answers[:, None])[:, 0] - logits.logsumexp(1)
    likeliest = logits.argmax(1) == answers
    row = rows.cpu().numpy()
    count = len(pick.fresh)
    grades.log_likelihood[pick.fresh] = np.bincount(
        row, weights=log_p.double().cpu().numpy(), minlength=count
    )
    grades.tokens[pick.fresh] = np.bincount(row, minlength=count)
    missed = np.bincount(row, weights=~likeliest.cpu().numpy(), minlength=count)
    grades.greedy[pick.fresh] = missed == 0


def bounded(table: TokenTable, batch_size: int) -> Iterator[Pick]:
    """Every row once, longest first, in batches of at most `batch_size` rows and about `TOKENS_PER_BATCH` tokens."""
    for pick in in_length_order(table, batch_size):
        step = max(1, TOKENS_PER_BATCH // int(table.lengths[pick.fresh].max()))
        for start in range(0, len(pick.fresh), step):
            part = slice(start, start + step)
            yield Pick(pick.fresh[part], pick.replay, pick.draw)
