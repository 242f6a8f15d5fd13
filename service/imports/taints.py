"""Adapters that come back after an erasure: what is known to have learnt erased rows is not imported again."""

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from service.erasures.queries import versions_tainted_by_any
from service.errors import Conflict
from service.models import IMPORT, Version


def require_untainted(session: Session, *, model_id: str, sha256: str, origin_update: str | None) -> None:
    """Raises `Conflict` for the adapter of a version of this model that an erasure has tainted.

    It is known by its bytes, as they were sent from here or to here, or by the update that its `version.json` names. Nobody
    can tell an adapter that was changed in both.
    """
    same: list[ColumnElement[bool]] = [
        Version.artifact_sha256 == sha256,
        (Version.strategy == IMPORT) & (Version.parameters["sha256"].astext == sha256),
    ]
    if origin_update is not None:
        same.append(Version.update_id == origin_update)
    found = select(Version.number).where(Version.model_id == model_id, or_(*same))
    suspects = sorted(session.scalars(found))
    if not suspects:
        return
    tainted = versions_tainted_by_any(session, model_id=model_id)
    if known := [number for number in suspects if number in tainted]:
        raise Conflict(
            f"The adapter is that of version {known[0]}, which carries rows that were erased since. Import one that was trained "
            "without them, or request an update on a clean version.",
            code="tainted_adapter", param="body",
        )  # fmt: skip
