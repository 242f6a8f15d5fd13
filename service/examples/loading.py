"""Loading a checked body: COPY into a temporary table, decisions in SQL over whole sets, one insert.

Rows come in while Postgres already takes them; what can only be said of rows together is decided there:

1. an id used twice in the body with different content: later lines are errors;
2. a text whose asked split is not the one it has in the model, or that the body asks for on both sides;
3. labels past the model's limit;
4. content that would belong to two subjects.

From step 2 on an advisory lock of the model keeps other ingests out, so that decisions hold until they are
stored. The model's own row is locked only at the very end, for the moment that takes the batch number: claims,
promotions and update requests never wait for a long insert.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.errors import LockNotAvailable
from sqlalchemy import CursorResult, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.db import allow_statements_of
from service.errors import Conflict, Unavailable
from service.examples import statements
from service.examples.rows import Row, RowError
from service.models import Model, Task

ERRORS_SHOWN = 100
KEYS_AT_ONCE = 10_000
TEXTS_AT_ONCE = 200_000
STATEMENT_TIMEOUT_SECONDS = 600
LOCK_TIMEOUT_SECONDS = 30


@dataclass(slots=True)
class Rejections:
    """The rows a body lost: how many, and the first of them by line."""

    count: int = 0
    first: list[RowError] = field(default_factory=list)

    def add(self, error: RowError) -> None:
        """Counts an error; errors come in the order of their lines."""
        self.count += 1
        if len(self.first) < ERRORS_SHOWN:
            self.first.append(error)

    def merge(self, errors: Iterable[RowError], *, count: int) -> None:
        """Adds errors found later, anywhere in the body."""
        self.count += count
        self.first = sorted([*self.first, *errors])[:ERRORS_SHOWN]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an insert did; `batch` is null when it changed nothing."""

    accepted: int
    replaced: int
    batch: int | None


class Loading:
    """One body on its way into one task, inside the session's transaction."""

    def __init__(self, session: Session, *, model: Model, task: Task) -> None:
        self._session, self._model = session, model
        self._values = {"tenant": model.tenant_id, "model": model.id, "task": task.id}
        self._staged = 0

    def stage(self, rows: Iterable[Row | RowError]) -> tuple[int, Rejections]:
        """Copies the good rows into the temporary table; returns their number and the bad ones."""
        allow_long_statements(self._session)
        self._session.execute(text(statements.CREATE_STAGING))
        rejections, staged = Rejections(), 0
        connection = self._session.connection().connection.driver_connection
        assert isinstance(connection, psycopg.Connection)  # noqa: S101  # the one driver of db.py
        try:
            with connection.cursor() as cursor, cursor.copy(statements.COPY_STAGING) as copy:
                for row in rows:
                    if isinstance(row, RowError):
                        rejections.add(row)
                    else:
                        copy.write_row(row)
                        staged += 1
        except psycopg.OperationalError as error:
            # As SQLAlchemy raises it elsewhere, and without the row that the server quotes.
            reason = (
                (error.diag.message_primary or type(error).__name__) if error.diag else type(error).__name__
            )
            raise OperationalError(
                "COPY", None, psycopg.OperationalError(reason), hide_parameters=True
            ) from None
        self._session.execute(text(statements.ANALYZE_STAGING))
        self._staged = staged
        return staged, rejections

    def judge(self, *, max_labels: int) -> tuple[int, list[RowError]]:
        """Marks the rows that contradict each other or the model; returns their number and the first of them."""
        count = self._change(statements.MARK_DUPLICATE_IDS)
        hold_ingests(self._session, model=self._model)
        self._meet_stored_rows()
        count += self._change(statements.MARK_STORED_SPLITS)
        count += self._change(statements.MARK_BODY_SPLITS)
        count += self._change(statements.MARK_LABELS, max_labels=max_labels)
        self._change(statements.INHERIT_SUBJECTS)
        count += self._change(statements.MARK_STORED_SUBJECTS)
        count += self._change(statements.MARK_BODY_SUBJECTS)
        return count, self._marked(max_labels=max_labels) if count else []

    def store(self) -> Loaded:
        """Supersedes the rows that are replaced and inserts the new ones as the model's next batch.

        Stored rows without a subject take the one that a duplicate names; that makes no batch.
        Raises `Conflict` when the model was archived meanwhile.
        """
        batch = self._last_batch() + 1
        replaced = self._supersede(batch=batch)
        self._own()
        accepted = self._change(statements.INSERT, batch=batch)
        if not accepted and not replaced:
            return Loaded(accepted=0, replaced=0, batch=None)
        taken = self._session.execute(text(statements.TAKE_BATCH), self._values).scalar()
        if taken is None:
            raise Conflict(f"The model '{self._model.name}' was archived meanwhile.", code="model_archived")
        if taken != batch:
            raise RuntimeError(f"batch {taken} of model {self._model.id} was taken outside the ingest lock")
        return Loaded(accepted=accepted, replaced=replaced, batch=batch)

    def _meet_stored_rows(self) -> None:
        if self._last_batch() == 0:
            return
        # A statement may take minutes, not hours: a large body's texts are looked up in parts, by their first byte.
        parts = min(1 + self._staged // TEXTS_AT_ONCE, 256)
        for part in range(parts):
            self._change(statements.MEET_TEXTS, parts=parts, part=part)
        if self._session.execute(text(statements.TASK_HAS_ROWS), self._values).scalar_one():
            self._meet_rows_of_task()
        self._session.execute(text(statements.ANALYZE_MET))

    def _meet_rows_of_task(self) -> None:
        self._session.execute(text(statements.PLAN_MODE), {"plan_mode": "force_custom_plan"})
        parts = self._session.execute(
            text(statements.STAGED_KEYS), {"keys": KEYS_AT_ONCE}, execution_options={"yield_per": 1}
        )
        for part in parts:
            self._change(statements.MEET_CONTENTS, content_hashes=part.content_hashes)
            self._change(statements.MEET_IDS, external_ids=part.external_ids)
        self._session.execute(text(statements.PLAN_MODE), {"plan_mode": "auto"})

    def _supersede(self, *, batch: int) -> int:
        ids = list(self._session.scalars(text(statements.REPLACED_IDS)))
        for start in range(0, len(ids), KEYS_AT_ONCE):
            part = ids[start : start + KEYS_AT_ONCE]
            self._change(statements.SUPERSEDE, batch=batch, ids=part)
            self._change(statements.FORGET_CONTENTS, ids=part)
        return len(ids)

    def _own(self) -> None:
        owned = self._session.execute(text(statements.OWNED_CONTENTS)).all()
        for start in range(0, len(owned), KEYS_AT_ONCE):
            part = owned[start : start + KEYS_AT_ONCE]
            self._change(statements.OWN, ids=[row.id for row in part], subjects=[row.subject for row in part])

    def _last_batch(self) -> int:
        return int(self._session.execute(text(statements.LAST_BATCH), self._values).scalar_one())

    def _change(self, statement: str, **values: Any) -> int:
        result = self._session.execute(text(statement), {**self._values, **values})
        assert isinstance(result, CursorResult)  # noqa: S101  # only such results count rows
        return result.rowcount

    def _marked(self, *, max_labels: int) -> list[RowError]:
        rows = self._session.execute(text(statements.FIRST_MARKED), {"shown": ERRORS_SHOWN})
        return [
            RowError(row.line, row.problem, statements.DETAILS[row.problem].format(**row._mapping, max=max_labels))
            for row in rows
        ]  # fmt: skip


def allow_long_statements(session: Session) -> None:
    """Gives the rest of the transaction more time and memory per statement: bodies and erasures can be large."""
    allow_statements_of(session, seconds=STATEMENT_TIMEOUT_SECONDS)
    session.execute(text(statements.LARGE_WORK), {"lock": f"{LOCK_TIMEOUT_SECONDS}s"})


def hold_ingests(session: Session, *, model: Model) -> None:
    """Keeps every other ingest out of the model until the transaction ends, once the one under way is through.

    Raises `Unavailable` (`ingest_busy`) when that takes longer than half a minute.
    """
    try:
        session.execute(text(statements.LOCK_INGEST), {"tenant": model.tenant_id, "model": model.id})
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        raise Unavailable(
            f"Another large body is being stored in the model '{model.name}'. Nothing of this request was done; send it again.",
            code="ingest_busy", headers={"Retry-After": "15"},
        ) from None  # fmt: skip
