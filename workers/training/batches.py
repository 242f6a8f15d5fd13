"""Rows in, batches out: read once, tokenise once, bucket by length, mix fresh with replayed rows."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.training.errors import TrainingFailed

Indices = NDArray[np.int64]

UNSEEN = -1
"""The label index of a row whose label the head does not know."""

TOKENISE_ROWS = 512
POOL_BATCHES = 16
"""Rows are sorted by length within pools of this many batches: little padding, and still well shuffled."""


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text."""

    id: int
    text: str
    label: str


def read_rows(path: str) -> list[Row]:
    """Read an NDJSON file of rows, in ascending order of id whatever the order in the file.

    An empty `path` stands for no rows.

    Raises:
        TrainingFailed: `bad_row`, naming the line.
    """
    if not path:
        return []
    rows = []
    with Path(path).open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                rows.append(parse_row(line, number))
    return sorted(rows, key=lambda row: row.id)


def parse_row(line: str, number: int) -> Row:
    """Read one line. Raises `TrainingFailed` (`bad_row`) when it is not a row."""
    try:
        value = json.loads(line)
        row = Row(value["id"], value["text"], value["label"])
        if not (isinstance(row.id, int) and isinstance(row.text, str) and isinstance(row.label, str)):
            raise TypeError("id is an integer, text and label are strings")
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingFailed(
            "bad_row", f"line {number} is not a labelled text: {error!r}", {"line": number}
        ) from error
    return row


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Tokenised rows in one flat array: row i holds `tokens[starts[i]:starts[i + 1]]`.

    `labels` are indices into the head (`UNSEEN` where it has none), `ids` the example ids. `answers` tells, token
    by token, which a language model learns to predict; `None` in a table of labelled texts.
    """

    tokens: NDArray[np.int32]
    starts: Indices
    labels: Indices
    ids: Indices
    padding_id: int
    answers: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Indices:
        """The rows' lengths in tokens."""
        return np.diff(self.starts)

    def row(self, index: int) -> NDArray[np.int32]:
        """The tokens of one row."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    def answer_count(self, picked: Indices) -> int:
        """How many answer tokens the rows at the positions `picked` have."""
        return sum(int(self.tokens_and_answers(int(row))[1].sum()) for row in picked)

    def tokens_and_answers(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The tokens of one row, and which of them are answers."""
        if self.answers is None:
            raise TypeError("this table holds labelled texts, not sequences with answers")
        return self.row(index), self.answers[self.starts[index] : self.starts[index + 1]]

    def sample(self, rows: int, *, seed: int) -> "TokenTable":
        """At most `rows` of the rows, drawn without replacement by `seed`, in table order."""
        if rows >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng([seed, 2]).permutation(len(self))[:rows]))

    def take(self, picked: Indices) -> "TokenTable":
        """The rows at the positions `picked`, in that order."""
        starts = np.zeros(len(picked) + 1, dtype=np.int64)
        np.cumsum(self.lengths[picked], out=starts[1:])
        places = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(np.arange(self.starts[i], self.starts[i + 1]) for i in picked)]
        )
        return TokenTable(
            self.tokens[places],
            starts,
            self.labels[picked],
            self.ids[picked],
            self.padding_id,
            None if self.answers is None else self.answers[places],
        )

    def split(self, fraction: float, *, seed: int) -> tuple["TokenTable", "TokenTable"]:
        """Hold a share of every label's rows out, by `seed`: the rows that stay and those held out.

        A label keeps at least one of its rows, so one with a single row is not represented among those held out.
        """
        if fraction == 0:
            return self, self.take(np.zeros(0, dtype=np.int64))
        order = np.random.default_rng([seed, 4]).permutation(len(self))
        held = np.zeros(len(self), dtype=bool)
        for label in np.unique(self.labels):
            rows = order[self.labels[order] == label]
            held[rows[: min(len(rows) - 1, round(fraction * len(rows)))]] = True
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))

    def joined(self, other: "TokenTable") -> "TokenTable":
        """These rows, then the other table's."""
        return TokenTable(
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.starts, self.starts[-1] + other.starts[1:]]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.ids, other.ids]),
            self.padding_id,
            None
            if self.answers is None or other.answers is None
            else np.concatenate([self.answers, other.answers]),
        )

    def label_counts(self, labels: int) -> NDArray[np.float64]:
        """How many rows carry each of the head's `labels`."""
        return np.bincount(self.labels[self.labels >= 0], minlength=labels).astype(np.float64)


def tokenise(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    labels: Sequence[str],
    max_length: int,
    poll: Callable[[int], None],
) -> TokenTable:
    """Tokenise rows once, truncated to `max_length`. `poll` is called with the rows done between chunks."""
    index_of = {label: index for index, label in enumerate(labels)}
    pieces: list[NDArray[np.int32]] = []
    for start in range(0, len(rows), TOKENISE_ROWS):
        poll(start)
        texts = [row.text for row in rows[start : start + TOKENISE_ROWS]]
        encoded = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False)[
            "input_ids"
        ]
        pieces.extend(np.asarray(ids, dtype=np.int32) for ids in encoded)
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in pieces], out=starts[1:])
    return TokenTable(
        tokens=np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32),
        starts=starts,
        labels=np.array([index_of.get(row.label, UNSEEN) for row in rows], dtype=np.int64),
        ids=np.array([row.id for row in rows], dtype=np.int64),
        padding_id=int(tokenizer.pad_token_id or 0),
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """One collated batch: `input_ids` and `attention_mask` [rows, tokens], `labels` and `draw` [rows].

    `draw` is 0 for a fresh row and counts the independent draws from the buffer from 1 on.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    draw: Tensor
    ids: tuple[int, ...]

    @property
    def replayed(self) -> Tensor:
        """Which rows come from the buffer [rows]."""
        return self.draw > 0

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        if device.type == "cpu":
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        tensors: dict[str, Any] = {
            field.name: moved(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True, slots=True)
class Pick:
    """The rows of one batch: positions in the fresh and in the replay table, and which draw each of the latter is of."""

    fresh: Indices
    replay: Indices
    draw: Indices


def collate(fresh: TokenTable, replay: TokenTable, pick: Pick) -> Batch:
    """Pad the picked rows to the longest of them: fresh rows first, then replayed ones."""
    rows = [fresh.row(i) for i in pick.fresh] + [replay.row(i) for i in pick.replay]
    width = max(len(row) for row in rows)
    input_ids = np.full((len(rows), width), fresh.padding_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    draw = np.concatenate([np.zeros(len(pick.fresh), dtype=np.int64), pick.draw])
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask),
        labels=torch.from_numpy(np.concatenate([fresh.labels[pick.fresh], replay.labels[pick.replay]])),
        draw=torch.from_numpy(draw),
        ids=tuple(int(i) for i in np.concatenate([fresh.ids[pick.fresh], replay.ids[pick.replay]])),
    )


@dataclass(frozen=True, slots=True)
class Mix:
    """How an update goes through its rows; every epoch is a pure function of `seed` and the epoch's number.

    An epoch takes each fresh row once, and replays as many rows as make `replay_fraction` of the whole. The
    buffer is gone through in shuffled rounds that run on from epoch to epoch, so an epoch costs
    `fresh / (1 - replay_fraction)` rows however large the buffer or the model's history has grown, and
    no buffered row is drawn twice before all have been drawn once. With several `draws` each has an equal part of
    the replayed rows and goes through the buffer on its own, independently of the others.
    """

    fresh: Indices
    replay: Indices
    batch_size: int
    replay_fraction: float
    seed: int
    draws: int = 1

    @property
    def replay_rows(self) -> int:
        """Rows replayed in one epoch, over all draws."""
        if len(self.replay) == 0 or self.replay_fraction == 0:
            return 0
        wanted = len(self.fresh) * self.replay_fraction / (1 - self.replay_fraction)
        return round(wanted / self.draws) * self.draws

    @property
    def batches(self) -> int:
        """Batches in one epoch, the same in every epoch."""
        return len(self.epoch(0))

    def epoch(self, number: int) -> list[Pick]:
        """The batches of epoch `number` (from 0), each with its share of fresh and replayed rows."""
        generator = np.random.default_rng([self.seed, 0, number])
        fresh = generator.permutation(len(self.fresh))
        replay = np.concatenate([self.replayed(number, draw) for draw in range(1, self.draws + 1)])
        draw = np.repeat(np.arange(1, self.draws + 1), len(replay) // self.draws)
        order = np.argsort(np.arange(len(replay)) % max(1, len(replay) // self.draws), kind="stable")
        pools = max(1, (len(fresh) + len(replay)) // (self.batch_size * POOL_BATCHES))
        picks = []
        for fresh_pool, replay_pool, draw_pool in zip(
            np.array_split(fresh, pools),
            np.array_split(replay[order], pools),
            np.array_split(draw[order], pools),
            strict=True,
        ):
            picks.extend(self.bucket(fresh_pool, replay_pool, draw_pool))
        return [picks[i] for i in generator.permutation(len(picks))]

    def bucket(self, fresh_pool: Indices, replay_pool: Indices, draw_pool: Indices) -> list[Pick]:
        """Cut one pool into batches of rows of like length, fresh and replayed side by side."""
        count = -(-(len(fresh_pool) + len(replay_pool)) // self.batch_size)
        by_length = fresh_pool[np.argsort(self.fresh[fresh_pool], kind="stable")]
        by_replay_length = np.argsort(self.replay[replay_pool], kind="stable")
        replay_by_length, draw_by_length = replay_pool[by_replay_length], draw_pool[by_replay_length]
        # Split at opposite roundings, so that no batch gets the larger piece of both.
        cuts = np.arange(count + 1)
        fresh_cuts = cuts * len(fresh_pool) // count
        replay_cuts = -(-cuts * len(replay_pool) // count)
        return [
            Pick(
                by_length[fresh_cuts[i] : fresh_cuts[i + 1]],
                replay_by_length[replay_cuts[i] : replay_cuts[i + 1]],
                draw_by_length[replay_cuts[i] : replay_cuts[i + 1]],
            )
            for i in range(count)
        ]

    def replayed(self, number: int, draw: int = 1) -> Indices:
        """The buffer rows of epoch `number` in one draw: its stretch of an endless sequence of shuffled rounds."""
        size, wanted = len(self.replay), self.replay_rows // self.draws
        if wanted == 0:
            return np.zeros(0, dtype=np.int64)
        first, last = number * wanted, (number + 1) * wanted
        rounds = [
            np.random.default_rng([self.seed, 1, turn, draw]).permutation(size)
            for turn in range(first // size, -(-last // size))
        ]
        return np.concatenate(rounds)[first % size :][:wanted]


def in_length_order(table: TokenTable, batch_size: int) -> Iterator[Pick]:
    """Every row of `table` once, as fresh rows, in batches of like length (longest first)."""
    order = np.argsort(-table.lengths, kind="stable")
    nothing = np.zeros(0, dtype=np.int64)
    for start in range(0, len(order), batch_size):
        yield Pick(order[start : start + batch_size], nothing, nothing)
