"""The rows of `bench.ingest`, as a client sends them and as Postgres takes them, and the load that HTTP is held against.

That load is the least a staged one can do: rows come checked, hashed and in COPY's own format; what is left is a COPY
into a temporary table and an INSERT … SELECT into `examples`, in the API's role, under its constraints and policies.
"""

import io
import random
from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
from sqlalchemy import text

from service.db import session_scope
from service.examples.bodies import ndjson_rows
from service.examples.content import encode_json
from service.examples.loading import allow_long_statements
from service.examples.rows import RowError, RowRules

LABELS = 10
WORDS_PER_ROW = 20
WORDS = [
    "account", "address", "agent", "amount", "answer", "balance", "bank", "card", "case", "charge",
    "claim", "client", "code", "contract", "credit", "customer", "date", "delay", "delivery", "deposit",
    "device", "discount", "email", "error", "fee", "form", "invoice", "issue", "item", "letter",
    "limit", "loan", "login", "message", "month", "number", "offer", "order", "parcel", "password",
]  # fmt: skip
RULES = RowRules(task_type="text-classification", max_row_bytes=2**20, max_label_length=256)

CREATE = """
CREATE TEMPORARY TABLE prepared (
    line bigint, external_id text, split text, content jsonb, label text, content_hash bytea, text_hash bytea,
    weight double precision, subject text, metadata jsonb
) ON COMMIT DROP
"""
INSERT = """
INSERT INTO examples (tenant_id, model_id, task_id, external_id, split, content, label, content_hash, text_hash,
                      weight, subject, metadata, batch)
SELECT :tenant, :model, :task, external_id, split, content, label, content_hash, text_hash, weight, subject, metadata,
       :batch
FROM pg_temp.prepared ORDER BY line
"""
COUNT_BATCH = "UPDATE models SET last_batch = :batch WHERE tenant_id = :tenant AND id = :model"


@dataclass(frozen=True, slots=True)
class Target:
    """The task that a load goes into, by ids."""

    tenant: str
    model: str
    task: str


def make_body(*, first: int, rows: int) -> bytes:
    """Rows as NDJSON, about 190 bytes each: an id, a text unlike any other, a label; the split is left to the text."""
    words = random.Random(first)
    return "".join(
        encode_json(
            {
                "id": f"row-{number}",
                "text": f"{' '.join(words.choices(WORDS, k=WORDS_PER_ROW))} {number}",
                "label": f"label-{number % LABELS}",
            }
        )
        + "\n"
        for number in range(first, first + rows)
    ).encode()


def prepare(body: bytes) -> bytes:
    """The same rows in the text format of COPY, with their hashes and splits."""
    lines = []
    for row in ndjson_rows(io.BytesIO(body), rules=RULES):
        if isinstance(row, RowError):
            raise ValueError(f"line {row.line}: {row.detail}")
        lines.append(
            _copy_line(
                (row.line, row.external_id, row.hashed_split, row.content, row.label, row.content_hash,
                 row.text_hash, row.weight, row.subject, row.metadata)
            )
        )  # fmt: skip
    return "".join(lines).encode()


def load(database_url: str, target: Target, prepared: bytes, *, batch: int) -> int:
    """Stores prepared rows as one batch in one transaction; returns how many."""
    values = {"tenant": target.tenant, "model": target.model, "task": target.task, "batch": batch}
    with session_scope(tenant=target.tenant, database_url=database_url) as session:
        allow_long_statements(session)  # as an ingest does: more time, more memory to sort in
        session.execute(text(CREATE))
        connection = session.connection().connection.driver_connection
        assert isinstance(connection, psycopg.Connection)  # the one driver of db.py
        with connection.cursor() as cursor, cursor.copy("COPY pg_temp.prepared FROM STDIN") as copy:
            copy.write(prepared)
        inserted = session.execute(text(INSERT), values)
        session.execute(text(COUNT_BATCH), values)
        return int(getattr(inserted, "rowcount", 0))


def _copy_line(values: Iterable[object]) -> str:
    return "\t".join(_copy_field(value) for value in values) + "\n"


def _copy_field(value: object) -> str:
    """A field of COPY's text format. The texts above hold none of the characters it would escape."""
    if value is None:
        return "\\N"
    return f"\\\\x{value.hex()}" if isinstance(value, bytes) else str(value)
