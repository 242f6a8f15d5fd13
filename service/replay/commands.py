"""Replay admissions: what a new version gives to the buffers of its descendants."""

from collections.abc import Iterable, Sequence
from itertools import islice

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.examples.queries import StoredExample
from service.models import Model
from service.replay.quotas import priority, stratum
from service.signs_of_life import show_life

ROWS_PER_COPY = 5000


def admit_examples(
    session: Session, *, model: Model, version: int, task: str, examples: Iterable[StoredExample]
) -> int:
    """Admits the examples of a task that a version learnt, with their strata and priorities; returns how many.

    Both stand on the task's name and the examples' content, not on ids: same data, same buffer.

    Rows go through COPY into a temporary table: COPY cannot write where row-level security applies.
    An example erased since it was trained on is left out.
    """
    session.execute(
        text(
            "CREATE TEMPORARY TABLE admissions (stratum text, priority double precision, example_id bigint) ON COMMIT DROP"
        )
    )
    rows = (_admission(model, task, example) for example in examples)
    # In pieces: the examples stream from a cursor of the same connection, which waits while a COPY runs.
    while piece := list(islice(rows, ROWS_PER_COPY)):
        _copy(session, piece)
    result = session.execute(
        text(
            "INSERT INTO replay_entries (tenant_id, model_id, version, stratum, priority, example_id)"
            " SELECT :tenant, :model, :version, a.stratum, a.priority, a.example_id FROM admissions a"
            " JOIN examples x ON x.tenant_id = :tenant AND x.id = a.example_id"
            " ORDER BY a.stratum, a.priority, a.example_id"  # as buffers read them: few pages, side by side
        ),
        {"tenant": model.tenant_id, "model": model.id, "version": version},
    )
    session.execute(text("DROP TABLE admissions"))
    return int(getattr(result, "rowcount", 0))


def _admission(model: Model, task: str, example: StoredExample) -> tuple[str, float, int]:
    policy = model.replay["policy"]
    weight = example.weight if policy == "weighted" else 1.0
    rank = priority(model.buffer_seed, task, example.content_hash, weight)
    return stratum(policy, task, example.label), rank, example.id


def _copy(session: Session, rows: Sequence[tuple[str, float, int]]) -> None:
    connection = session.connection().connection.driver_connection
    if connection is None:
        raise RuntimeError("the session has no driver connection")
    with connection.cursor() as cursor, cursor.copy("COPY admissions FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    show_life()
