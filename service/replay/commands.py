"""Replay admissions: what a new version gives to the buffers of its descendants."""

from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.examples.queries import StoredExample
from service.models import Model
from service.replay.quotas import priority, stratum


def admit_examples(session: Session, *, model: Model, version: int, examples: Iterable[StoredExample]) -> int:
    """Admits the examples a version learnt, with their strata and priorities; returns how many.

    Rows go through COPY into a temporary table: COPY cannot write where row-level security applies.
    An example erased since it was trained on is left out.
    """
    policy = model.replay["policy"]
    session.execute(
        text(
            "CREATE TEMPORARY TABLE admissions (stratum text, priority double precision, example_id bigint) ON COMMIT DROP"
        )
    )
    connection = session.connection().connection.driver_connection
    if connection is None:
        raise RuntimeError("the session has no driver connection")
    with connection.cursor() as cursor, cursor.copy("COPY admissions FROM STDIN") as copy:
        for example in examples:
            weight = example.weight if policy == "weighted" else 1.0
            rank = priority(model.buffer_seed, example.task_id, example.content_hash, weight)
            copy.write_row((stratum(policy, example.task_id, example.label), rank, example.id))
    result = session.execute(
        text(
            "INSERT INTO replay_entries (tenant_id, model_id, version, stratum, priority, example_id)"
            " SELECT :tenant, :model, :version, a.stratum, a.priority, a.example_id FROM admissions a"
            " JOIN examples x ON x.tenant_id = :tenant AND x.id = a.example_id"
        ),
        {"tenant": model.tenant_id, "model": model.id, "version": version},
    )
    session.execute(text("DROP TABLE admissions"))
    return int(getattr(result, "rowcount", 0))
