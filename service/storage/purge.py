"""The end of a model: everything it owns goes, and its name is free."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from structlog import get_logger

from service.audit.commands import record
from service.errors import Conflict
from service.examples.commands import hold_erasures
from service.examples.loading import allow_long_statements
from service.models import AuditAction, Model, Update, WebhookDelivery
from service.registry.disposal import discard_artifacts
from service.registry.queries import get_model, get_model_alone
from service.storage.answers import forget_answers
from service.storage.queries import model_storage, stored_artifacts
from service.storage.schemas import PurgeRead
from service.updates.states import ACTIVE

log = get_logger(__name__)


def purge_model(session: Session, *, model: str, actor: str) -> PurgeRead:
    """Deletes an archived model with all it owns, and the artifacts nothing else refers to; says what went.

    Raises `NotFound`, and `Conflict` for a model that is not archived or whose candidate is being scored.
    """
    hold_erasures(session, model_id=get_model(session, model=model).id)
    row = get_model_alone(session, model=model)
    _require_archived(session, row)
    allow_long_statements(session)
    amounts = model_storage(session, models=[row])[0]
    stored = stored_artifacts()
    artifacts = set(session.scalars(select(stored.c.sha256).where(stored.c.model_id == row.id)))
    forget_answers(session, model=row)
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.model_id == row.id))
    session.execute(delete(Model).where(Model.id == row.id))  # foreign keys take the rest along
    discard_artifacts(session, artifacts)
    record(
        session, tenant=row.tenant_id, actor=actor, action=AuditAction.MODEL_PURGED, target=row.id,
        name=row.name, examples=amounts.examples, versions=amounts.versions,
    )  # fmt: skip
    log.info("model_purged", model=row.id, examples=amounts.examples, versions=amounts.versions)
    return PurgeRead(**amounts.model_dump(exclude={"archived"}))


def _require_archived(session: Session, model: Model) -> None:
    if model.archived_at is None:
        raise Conflict(
            f"The model '{model.name}' is not archived, and a purge cannot be undone; DELETE it first, which archives it.",
            code="model_not_archived", param="model",
        )  # fmt: skip
    active = session.scalar(
        select(Update.id).where(Update.model_id == model.id, Update.state.in_(ACTIVE)).limit(1)
    )
    if active is not None:
        raise Conflict(
            f"The update {active} is being worked on; cancel it or wait for it, then purge.",
            code="model_busy",
        )
