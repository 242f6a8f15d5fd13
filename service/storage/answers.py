"""Answers that are kept for repeats of requests with an Idempotency-Key: how long, and what is taken out of them before."""

from sqlalchemy import delete, func, literal, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from service.models import IdempotencyKey, Model

BODY = IdempotencyKey.body
OF_AN_INGEST = BODY.has_key("accepted")


def forget_answers(session: Session, *, model: Model) -> None:
    """Drops the answers that speak of the model: a repeat must not be told of what is gone.

    Answers of ingests do not name their model, so all of them go: a repeat of another model's is a count of duplicates.
    """
    about = or_(BODY["id"].astext == model.id, BODY["model"].astext == model.name, OF_AN_INGEST)
    session.execute(delete(IdempotencyKey).where(about))


def blank_row_errors(session: Session) -> None:
    """Takes the row errors, which quote ids and labels, out of the tenant's answers of ingests.

    The answers stay: without them a repeat would store the rows anew.
    """
    session.execute(
        update(IdempotencyKey)
        .where(OF_AN_INGEST, BODY["errors"] != literal([], JSONB))
        .values(body=BODY.concat(literal({"errors": []}, JSONB)))
        .execution_options(synchronize_session=False)
    )


def delete_old_answers(session: Session, *, days: int, limit: int) -> int:
    """Deletes at most `limit` answers, of every tenant that `session` sees, given more than `days` ago; returns how many."""
    key = tuple_(IdempotencyKey.tenant_id, IdempotencyKey.key)
    old = (
        select(IdempotencyKey.tenant_id, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < func.now() - func.make_interval(0, 0, 0, days))
        .limit(limit)
    )
    return len(
        session.execute(delete(IdempotencyKey).where(key.in_(old)).returning(IdempotencyKey.key)).all()
    )
