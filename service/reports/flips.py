"""The flip ledger: the very examples on which two versions differ, and how often each has flipped along the lineage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from service.db import among
from service.dependencies import invalid_cursor, opaque_cursor, read_cursor
from service.evaluations.flip_history import FlipHistory
from service.evaluations.outcomes import Flags, Ids, Outcomes, flips, pair
from service.evaluations.queries import load_flip_histories, load_outcomes
from service.examples.queries import public_id
from service.models import Example, Model, Version
from service.registry.queries import get_model, get_version
from service.reports.answers import Answers, named_tasks
from service.reports.schemas import Flip, FlipPage, LineageFlips

Kind = Literal["negative", "positive"]
Sort = Literal["confidence", "flips", "id"]
Ranks = NDArray[np.int64]

CONFIDENCE_STEPS = 2**24
"""Stored confidences are half-precision floats: multiples of one such step, so that ranks are whole and exact."""


@dataclass(frozen=True, slots=True)
class FlipQuery:
    """Which flips are wanted, and in which order: by falling `confidence` or number of `flips`, or by rising id."""

    against: int | None = None
    task: str | None = None
    kind: Kind | None = None
    label: str | None = None
    predicted: str | None = None
    min_confidence: float = 0.0
    min_flips: int = 0
    sort: Sort = "id"


FLIP = np.dtype(
    [
        ("id", np.int64),
        ("negative", np.bool_),
        ("predicted", np.int32),  # by the version after: an index into its labels
        ("confidence", np.float32),  # of that label
        ("in_lineage", np.int64),  # how often the example flipped along the lineage
    ]
)
"""What flips are filtered and sorted by."""
Flips = NDArray[np.void]  # of the dtype FLIP


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """The flips of a query in their order: ids, and the ranks that they are sorted by (lowest first, then by id).

    It holds numbers alone; `read` fetches texts for as many as are wanted at a time.
    """

    model: Model
    before: Version
    after: Version
    sort: Sort
    ids: Ids
    ranks: Ranks
    _answers: Answers
    _histories: Mapping[str, FlipHistory]
    _names: Mapping[str, str]

    def __len__(self) -> int:
        return int(self.ids.size)

    def read(self, session: Session, *, start: int, stop: int) -> list[Flip]:
        """Returns the flips at places `start` to `stop`, those left out whose example was erased meanwhile."""
        wanted = self.ids[start:stop].tolist()
        rows = session.scalars(select(Example).where(_among(wanted)))
        stored = {row.id: row for row in rows}
        return [self._flip(stored[example]) for example in wanted if example in stored]

    def cursor_of(self, place: int) -> str:
        """Returns the cursor of the page that follows the flip at `place`."""
        return opaque_cursor(f"{self.sort}:{self.ranks[place]}:{self.ids[place]}")

    def place_after(self, cursor: str) -> int:
        """Returns where the page of a cursor starts, whatever was erased since it was given out.

        Raises `Unprocessable` for a cursor of another order.
        """
        rank, example = _position(cursor, sort=self.sort)
        behind = (self.ranks > rank) | ((self.ranks == rank) & (self.ids > example))
        return len(self) - int(np.count_nonzero(behind))

    def _flip(self, example: Example) -> Flip:
        before, after = (self._answers.answer(version, example) for version in (self.before, self.after))
        history = self._histories[example.task_id]
        column = int(history.columns(np.array([example.id]))[0])
        negative_at, positive_at = (history.turned_at(column, sign=sign) for sign in (-1, 1))
        return Flip(
            task=self._names[example.task_id],
            kind="positive" if self._answers.correct(self.after, example) else "negative",
            id=public_id(example), content=example.content, expected=example.label, before=before, after=after,
            lineage=LineageFlips(
                negative=len(negative_at), positive=len(positive_at), negative_at=negative_at, positive_at=positive_at
            ),
        )  # fmt: skip


def list_flips(
    session: Session, *, model: str, version: int, query: FlipQuery, limit: int, cursor: str | None
) -> FlipPage:
    """Returns a page of the flips of a version against another one (its parent by default)."""
    ledger = read_ledger(session, model=model, version=version, query=query)
    start = 0 if cursor is None else ledger.place_after(cursor)
    stop = min(start + limit, len(ledger))
    more = stop < len(ledger)
    return FlipPage(
        model=ledger.model.name, before=ledger.before.number, after=ledger.after.number,
        data=ledger.read(session, start=start, stop=stop), has_more=more,
        next_cursor=ledger.cursor_of(stop - 1) if more else None,
    )  # fmt: skip


def read_ledger(session: Session, *, model: str, version: int, query: FlipQuery) -> Ledger:
    """Returns the very examples on which a version differs from another one, filtered and sorted.

    Erased examples are gone from the list; their share in the counts of reports remains. Raises `NotFound`.
    """
    row = get_model(session, model=model)
    after = get_version(session, model=row, version=version)
    parent = after.parent or 0
    before = get_version(session, model=row, version=parent if query.against is None else query.against)
    names = named_tasks(session, model=row, task=query.task)
    outcomes = load_outcomes(session, model=row, versions={before.number, after.number}, task_ids=list(names))
    both = [task_id for task_id in names if all((v.number, task_id) in outcomes for v in (before, after))]
    histories = load_flip_histories(session, model=row, lineage=after.lineage, task_ids=both)
    found = np.concatenate([
        np.zeros(0, FLIP),
        *(_of_task(outcomes[before.number, task_id], outcomes[after.number, task_id], histories[task_id]) for task_id in both),
    ])  # fmt: skip
    matching = found[_matches(found, query=query, labels=after.labels)]
    matching = matching[_stored(session, ids=matching["id"], label=query.label)]
    ranks = RANKS[query.sort](matching)
    order = np.lexsort((matching["id"], ranks))
    return Ledger(
        model=row, before=before, after=after, sort=query.sort, ids=matching["id"][order], ranks=ranks[order],
        _answers=Answers(outcomes), _histories=histories, _names=names,
    )  # fmt: skip


def _of_task(before: Outcomes, after: Outcomes, history: FlipHistory) -> Flips:
    """One task's flips, by example id."""
    ids = np.sort(np.concatenate(flips(pair(before, after))))
    found = np.zeros(len(ids), FLIP)
    found["id"] = ids
    _, at, _ = np.intersect1d(after.example_ids, ids, assume_unique=True, return_indices=True)
    found["negative"] = ~after.correct[at]
    found["predicted"] = after.predicted[at]
    found["confidence"] = after.confidence[at]
    found["in_lineage"] = (history.negative + history.positive)[history.columns(ids)]
    return found


def _matches(found: Flips, *, query: FlipQuery, labels: Sequence[str]) -> Flags:
    """Which flips are of the kind, the answer, the confidence and the frequency that are asked for."""
    wanted: Flags = found["confidence"] >= query.min_confidence
    wanted &= found["in_lineage"] >= query.min_flips
    if query.kind is not None:
        wanted &= found["negative"] == (query.kind == "negative")
    if query.predicted is not None:
        places = [at for at, label in enumerate(labels) if label == query.predicted]
        wanted &= np.isin(found["predicted"], places)
    return wanted


def _stored(session: Session, *, ids: Ids, label: str | None) -> Flags:
    """Which of the examples are stored still, and have the label where one is asked for."""
    rows = session.execute(select(Example.id, Example.label).where(_among(ids.tolist())))
    kept = [example for example, expected in rows if label is None or expected == label]
    return np.isin(ids, np.array(kept, dtype=np.int64))


def _among(ids: Sequence[int]) -> ColumnElement[bool]:
    return among(Example.id, ids)


def _by_confidence(found: Flips) -> Ranks:
    return -np.round(found["confidence"].astype(np.float64) * CONFIDENCE_STEPS).astype(np.int64)


RANKS: Mapping[Sort, Callable[[Flips], Ranks]] = {
    "confidence": _by_confidence,
    "flips": lambda found: -found["in_lineage"],
    "id": lambda found: np.zeros(len(found), dtype=np.int64),
}


def _position(cursor: str, *, sort: Sort) -> tuple[int, int]:
    """The rank and the id that a cursor of this order stands behind. Raises `Unprocessable` for any other."""
    try:
        of_sort, rank, example = read_cursor(cursor).split(":")
        position = int(rank), int(example)
    except ValueError:
        raise invalid_cursor() from None
    if of_sort != sort or not all(-(2**63) <= number < 2**63 for number in position):
        raise invalid_cursor()
    return position
