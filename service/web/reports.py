"""Kept reports as pages read them: by their own document, made anew only where something changed."""

from service.reports.documents import Wanted, documents
from service.reports.schemas import ForgettingReport, UpdateReport
from service.web.session import Visitor


async def forgetting_report(visitor: Visitor, model: str, version: int | None = None) -> ForgettingReport:
    """Returns the accuracy matrix of the champion's lineage, or of a version's. Raises `NotFound`.

    It reads in a transaction of its own: ask before the request's session is used, so that one connection is enough.
    """
    wanted = Wanted(visitor.principal.tenant, "forgetting", model, version)
    return ForgettingReport.model_validate_json(await documents.get(wanted))


async def update_report(visitor: Visitor, model: str, version: int) -> UpdateReport:
    """Returns the report of the update that made a version. Raises `NotFound`, also for the base."""
    wanted = Wanted(visitor.principal.tenant, "update", model, version)
    return UpdateReport.model_validate_json(await documents.get(wanted))
