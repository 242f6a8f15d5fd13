"""Reads of examples: which rows a cut shows, which of them are fresh, and the rows themselves."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy.orm import Session

from service.db import among
from service.errors import NotFound
from service.models import BLEND, Example, ReplayEntry, Task, Version

ROWS_PER_FETCH = 2000
IDS_PER_COUNT = 100_000
GIVEN_ID = re.compile(r"ex_([1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class StoredExample:
    """One stored row as training and scoring read it."""

    id: int
    task_id: str
    content: dict[str, Any]
    label: str | None
    content_hash: bytes
    weight: float


_COLUMNS = (
    Example.id, Example.task_id, Example.content, Example.label, Example.content_hash, Example.weight,
)  # fmt: skip
_Columns = tuple[int, str, dict[str, Any], str | None, bytes, float]


def visible(cut: int) -> ColumnElement[bool]:
    """The condition that an example is part of the data at ingest batch `cut`."""
    return and_(Example.batch <= cut, or_(Example.superseded_batch.is_(None), Example.superseded_batch > cut))


def fresh_rows(
    session: Session, *, task_id: str, after_batch: int, up_to_batch: int
) -> Iterator[StoredExample]:
    """Yields the train rows that came in after `after_batch` and are visible at `up_to_batch`, by id.

    Rows stream from a server-side cursor: memory stays flat, and the transaction is open until the last row.
    """
    condition = _fresh(task_id=task_id, after_batch=after_batch, up_to_batch=up_to_batch)
    statement = select(*_COLUMNS).where(condition).order_by(Example.id)
    for row in session.execute(statement.execution_options(yield_per=ROWS_PER_FETCH)):
        yield _stored(row)


def has_fresh(session: Session, *, task_id: str, after_batch: int, up_to_batch: int) -> bool:
    """Says whether `fresh_rows` would yield any row."""
    condition = _fresh(task_id=task_id, after_batch=after_batch, up_to_batch=up_to_batch)
    return bool(session.scalar(select(exists().where(condition))))


def learnable_ids(session: Session, *, task_ids: Sequence[str], cut: int) -> list[int]:
    """Returns the ids of all train rows of these tasks that are visible at `cut`."""
    return list(session.scalars(select(Example.id).where(_learnable(task_ids, cut)).order_by(Example.id)))


def count_learnable(session: Session, *, task_ids: Sequence[str], cut: int) -> int:
    """Returns how many train rows of these tasks are visible at `cut`."""
    return session.scalar(select(func.count()).select_from(Example).where(_learnable(task_ids, cut))) or 0


def eval_ids(session: Session, *, task_id: str, cut: int) -> list[int]:
    """Returns the ids of the task's eval rows visible at `cut`, ascending: an eval set in its stored order."""
    return list(session.scalars(select(Example.id).where(_eval(task_id, cut)).order_by(Example.id)))


def eval_sizes(session: Session, *, task_ids: Sequence[str], cut: int) -> dict[str, int]:
    """Returns the size of every task's eval set at `cut`, by the task's id."""
    counted = (
        select(Example.task_id, func.count())
        .where(
            among(Example.task_id, task_ids),
            Example.split == "eval",
            visible(cut),
        )
        .group_by(Example.task_id)
    )
    sizes = dict.fromkeys(task_ids, 0)
    sizes.update({task_id: size for task_id, size in session.execute(counted)})  # noqa: C416  # rows are no pairs to mypy
    return sizes


def has_eval(session: Session, *, task_id: str, cut: int) -> bool:
    """Says whether the task's eval set at `cut` has any row."""
    return bool(session.scalar(select(exists().where(_eval(task_id, cut)))))


def visible_labels(session: Session, *, task_id: str, split: str, cut: int) -> set[str]:
    """Returns the labels among the rows of one split of a task that are visible at `cut`."""
    statement = (
        select(Example.label)
        .where(Example.task_id == task_id, Example.split == split, visible(cut))
        .distinct()
    )
    return {label for label in session.scalars(statement) if label is not None}


def rows_by_id(session: Session, ids: Sequence[int]) -> Iterator[StoredExample]:
    """Yields the rows with these ids, in the order asked for; ids of erased rows are left out."""
    for start in range(0, len(ids), ROWS_PER_FETCH):
        wanted = ids[start : start + ROWS_PER_FETCH]
        rows = session.execute(select(*_COLUMNS).where(among(Example.id, wanted)))
        found = {row.id: _stored(row) for row in rows}
        yield from (found[key] for key in wanted if key in found)


def count_stored(session: Session, ids: Sequence[int]) -> int:
    """Returns how many of these ids still name a row, corrected or not; the others were erased."""
    return sum(
        session.scalar(
            select(func.count())
            .select_from(Example)
            .where(among(Example.id, ids[start : start + IDS_PER_COUNT]))
        )
        or 0
        for start in range(0, len(ids), IDS_PER_COUNT)
    )


def live_examples(
    *, task: Task, split: str | None = None, label: str | None = None, subject: str | None = None
) -> Select[Example]:
    """The statement that selects the task's present rows, narrowed by what is given."""
    statement = select(Example).where(Example.task_id == task.id, Example.superseded_batch.is_(None))
    for column, value in ((Example.split, split), (Example.label, label), (Example.subject, subject)):
        if value is not None:
            statement = statement.where(column == value)
    return statement


def get_example(session: Session, *, task: Task, example: str) -> Example:
    """Returns the task's present row with this public id. Raises `NotFound`."""
    row = session.scalar(live_examples(task=task).where(has_public_id(example)))
    if row is None:
        raise example_not_found(task=task, example=example)
    return row


def has_public_id(example: str) -> ColumnElement[bool]:
    """The condition that a row goes by this id: the caller's own, or `ex_…` as the service gave it."""
    given = GIVEN_ID.fullmatch(example)
    if given is not None:
        return Example.id == int(given[1])
    # Postgres cannot compare with a NUL; no stored id has one.
    return Example.external_id == example.replace("\0", "\ufffd")


def public_id(row: Example) -> str:
    """Returns the id callers know the row by: their own, else `ex_` and the row's number."""
    return row.external_id if row.external_id is not None else f"ex_{row.id}"


def example_not_found(*, task: Task, example: str) -> NotFound:
    """The error for an id that names no row of the task."""
    return NotFound(
        f"The task '{task.name}' has no example '{example}'.", code="example_not_found", param="example"
    )


def versions_that_learnt(session: Session, *, model_id: str, examples: Select[int]) -> list[int]:
    """Returns the numbers of the versions that were trained on any row whose id `examples` selects."""
    statement = (
        select(ReplayEntry.version)
        .where(ReplayEntry.model_id == model_id, ReplayEntry.example_id.in_(examples))
        .distinct()
        .order_by(ReplayEntry.version)
    )
    return list(session.scalars(statement))


def descendants(session: Session, *, model_id: str, versions: Sequence[int]) -> list[int]:
    """Returns the numbers of the versions built on any of these, those themselves left out.

    Built on are its descendants and, though the version is no ancestor of theirs, the blends of it with its parent; and
    what is built on any of those.
    """
    known: set[int] = set()
    found = set(versions)
    while found - known:
        known |= found
        blended = and_(Version.strategy == BLEND, Version.parameters["of"].as_integer().in_(known))
        built = or_(Version.lineage.overlap(sorted(known)), blended)
        found = set(session.scalars(select(Version.number).where(Version.model_id == model_id, built)))
    return sorted(known - set(versions))


def _fresh(*, task_id: str, after_batch: int, up_to_batch: int) -> ColumnElement[bool]:
    return and_(
        Example.task_id == task_id,
        Example.split == "train",
        Example.batch > after_batch,
        visible(up_to_batch),
    )


def _learnable(task_ids: Sequence[str], cut: int) -> ColumnElement[bool]:
    return and_(among(Example.task_id, task_ids), Example.split == "train", visible(cut))


def _eval(task_id: str, cut: int) -> ColumnElement[bool]:
    return and_(Example.task_id == task_id, Example.split == "eval", visible(cut))


def _stored(row: Row[*_Columns]) -> StoredExample:
    return StoredExample(*row)
