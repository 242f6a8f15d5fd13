"""How often each example of an eval set flipped along a lineage: counts over packed outcomes. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.evaluations.outcomes import Ids

UNANSWERED = -1
"""A version's entry for an example that it was not scored on; else 1 for right and 0 for wrong."""

Answered = NDArray[np.int8]
Turns = NDArray[np.int8]
Counts = NDArray[np.int64]


class ScoredSet(NamedTuple):
    """Which examples of an eval set versions had right: of each version a bit per example, as `outcomes.pack` stores them."""

    example_ids: Ids
    versions: list[int]
    correct: list[bytes]


@dataclass(frozen=True, slots=True, eq=False)
class FlipHistory:
    """How the examples of a task turned along a lineage.

    `turns` [versions, examples] is −1 where a version turned the example wrong, 1 where it turned it right and 0
    elsewhere; its rows follow `versions`, its columns the rising `example_ids`. `compared` [examples] counts the
    versions that had an earlier answer to turn: what flip rates are shares of.
    """

    versions: NDArray[np.int64]
    example_ids: Ids
    turns: Turns
    compared: Counts

    @property
    def negative(self) -> Counts:
        """How often each example turned wrong [examples]."""
        turned: Counts = (self.turns < 0).sum(axis=0, dtype=np.int64)
        return turned

    @property
    def positive(self) -> Counts:
        """How often each example turned right [examples]."""
        turned: Counts = (self.turns > 0).sum(axis=0, dtype=np.int64)
        return turned

    def columns(self, example_ids: Ids) -> NDArray[np.intp]:
        """The columns of examples, every one of which must be among `example_ids` of the history."""
        return np.searchsorted(self.example_ids, example_ids)

    def turned_at(self, column: int, *, sign: int) -> list[int]:
        """The versions that turned one example wrong (`sign` −1) or right (1)."""
        return [int(version) for version in self.versions[self.turns[:, column] == sign]]


def flip_history(versions: Sequence[int], scored: Iterable[ScoredSet]) -> FlipHistory:
    """Returns how one task's examples turned along a lineage, oldest version first.

    Every answer is compared with the nearest earlier one of the lineage: a version that was not scored on an
    example is passed over. An example that a version was scored on in several eval sets counts once.
    """
    sets = list(scored)
    ids = np.unique(np.concatenate([np.zeros(0, np.int64), *(one.example_ids for one in sets)]))
    answered = np.full((len(versions), ids.size), UNANSWERED, dtype=np.int8)
    row_of = {version: row for row, version in enumerate(versions)}
    for example_ids, scored_versions, correct in sets:
        packed = np.frombuffer(b"".join(correct), dtype=np.uint8).reshape(len(correct), -1)
        rows = np.array([row_of[version] for version in scored_versions])
        bits = np.unpackbits(packed, axis=1, count=example_ids.size)
        answered[np.ix_(rows, np.searchsorted(ids, example_ids))] = bits
    turns, compared = _turns(answered)
    return FlipHistory(np.asarray(versions, dtype=np.int64), ids, turns, compared)


def _turns(answered: Answered) -> tuple[Turns, Counts]:
    """Each answer less the nearest earlier one of its column, 0 where there is none; and how many had one."""
    turns = np.zeros_like(answered)
    compared = np.zeros(answered.shape[1], dtype=np.int64)
    newest = np.full(answered.shape[1], UNANSWERED, dtype=np.int8)
    for answers, turn in zip(answered, turns, strict=True):
        given = answers != UNANSWERED
        comparable = given & (newest != UNANSWERED)
        np.subtract(answers, newest, out=turn, where=comparable)
        np.copyto(newest, answers, where=given)
        compared += comparable
    return turns, compared
