"""The trace of one attempt: a span within the trace of the request that asked for the update."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger
from structlog.contextvars import bound_contextvars

from service import tracing
from service.db import session_scope
from service.updates.leases import Claim, note_attempt

log = get_logger(__name__)


@contextmanager
def attempt_span(claim: Claim) -> Iterator[None]:
    """One span around an attempt, linked with the attempt before it. Its trace id goes to the child's log lines too."""
    if not tracing.is_on():
        yield
        return
    attributes: dict[str, str | bool] = {
        "palimpsest.model": claim.model_id,
        "palimpsest.rescore": claim.rescore,
    }
    with tracing.span(
        "update.attempt",
        parent=claim.traceparent,
        linked_with=claim.attempt_traceparent,
        attributes=attributes,
    ):
        _leave_for_the_next(claim)
        with bound_contextvars(trace_id=tracing.current_trace_id()):
            yield


def _leave_for_the_next(claim: Claim) -> None:
    try:
        with session_scope(tenant=claim.tenant, role="worker") as session:
            note_attempt(session, claim=claim, traceparent=tracing.current_traceparent())
    except (
        SQLAlchemyError
    ) as error:  # a link less; what the attempt itself writes is guarded where it is written
        log.warning("attempt_not_linked", error=type(error).__name__)
