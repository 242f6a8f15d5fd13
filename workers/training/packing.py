"""Batches of a language model: rows padded side by side, or packed into shared sequences that stay apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.training.batches import Batch, Indices, Pick, TokenTable


@dataclass(frozen=True, slots=True)
class TokenBatch(Batch):
    """Sequences and the answer tokens to predict in them; `labels`, `draw`, `predicting` and `rows` are [answers].

    `input_ids`, `attention_mask` and `position_ids` are [sequences, tokens]. `labels` holds the answer tokens,
    `predicting` the places, in the flattened sequences, of the tokens before them, and `rows` the batch's row
    that each answer belongs to, an index into `ids`. `segments` [sequences, tokens] numbers the rows within a
    packed sequence; `None` where every sequence is one row.
    """

    position_ids: Tensor
    predicting: Tensor
    rows: Tensor
    segments: Tensor | None

    def attention(self) -> Tensor | None:
        """Who may look at whom, bool [sequences, 1, tokens, tokens]; `None` for plain causal attention.

        Padding stands behind every row's last token, so that causal attention alone keeps it out.
        """
        if self.segments is None:
            return None
        width = self.segments.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.segments.device).tril()
        return ((self.segments[:, :, None] == self.segments[:, None, :]) & causal)[:, None]


def pack(fresh: TokenTable, replay: TokenTable, pick: Pick, *, packed: bool) -> TokenBatch:
    """Collate the picked rows, fresh ones first; `packed` lets short rows share a sequence.

    Rows of one sequence do not see each other: positions start anew and attention is block-diagonal. No sequence
    is longer than the longest row. Answers come in the order of the rows, packed or not.
    """
    rows = [fresh.tokens_and_answers(i) for i in pick.fresh]
    rows += [replay.tokens_and_answers(i) for i in pick.replay]
    draw = np.concatenate([np.zeros(len(pick.fresh), dtype=np.int64), pick.draw])
    lengths = [len(tokens) for tokens, _ in rows]
    width = max(lengths)
    bins = first_fit(lengths, width) if packed else [[row] for row in range(len(rows))]
    shape = (len(bins), width)
    input_ids = np.full(shape, fresh.padding_id, dtype=np.int64)
    positions, segments = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    starts = np.zeros(len(rows), dtype=np.int64)
    for sequence, members in enumerate(bins):
        offset = 0
        for number, row in enumerate(members, start=1):
            place = slice(offset, offset + lengths[row])
            input_ids[sequence, place] = rows[row][0]
            positions[sequence, place] = np.arange(lengths[row])
            segments[sequence, place] = number
            starts[row] = sequence * width + offset
            offset += lengths[row]
    answers = [np.flatnonzero(mask) for _, mask in rows]
    counts = [len(places) for places in answers]
    return TokenBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy((segments > 0).astype(np.int64)),
        labels=torch.from_numpy(
            _joined([tokens[p].astype(np.int64) for (tokens, _), p in zip(rows, answers, strict=True)])
        ),
        draw=torch.from_numpy(np.repeat(draw, counts)),
        ids=tuple(int(i) for i in np.concatenate([fresh.ids[pick.fresh], replay.ids[pick.replay]])),
        position_ids=torch.from_numpy(positions),
        predicting=torch.from_numpy(_joined([s + p - 1 for s, p in zip(starts, answers, strict=True)])),
        rows=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        segments=torch.from_numpy(segments) if len(bins) < len(rows) else None,
    )


def _joined(pieces: Sequence[Indices]) -> Indices:
    return np.concatenate(pieces)


def first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Put rows of these lengths into as few sequences of `width` as first-fit decreasing finds (Johnson 1973)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fitting = next((index for index, left in enumerate(room) if left >= lengths[row]), None)
        if fitting is None:
            bins.append([row])
            room.append(width - lengths[row])
        else:
            bins[fitting].append(row)
            room[fitting] -= lengths[row]
    return bins
