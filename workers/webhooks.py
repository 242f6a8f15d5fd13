"""Sends what webhooks are to be told of: claim, send outside of any transaction, record.

Every worker and every sweeper does; any number may. One that dies between sending and recording leaves a lease, and the
message is sent again under the same id.
"""

import threading
import time

from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from service.db import EVERY_TENANT, session_scope
from service.failpoints import reach
from service.models import DeliveryState
from service.webhooks import leases
from service.webhooks.leases import Claim
from service.webhooks.sending import Answer, send

log = get_logger(__name__)
POLL_SECONDS = 1.0
MOST_AT_ONCE = 8
PATIENCE_SECONDS = 5.0  # for requests under way when the process stops; others are sent again by the next


def deliver_forever(stopping: threading.Event) -> None:
    """Delivers until told to stop; a failing database is waited out."""
    finished = threading.Event()
    senders: list[threading.Thread] = []
    while not stopping.is_set():
        finished.clear()
        senders = [sender for sender in senders if sender.is_alive()]
        for claim in _claim(MOST_AT_ONCE - len(senders)):
            sender = threading.Thread(target=_deliver_and_tell, args=(claim, finished), daemon=True)
            sender.start()
            senders.append(sender)
        if senders:
            finished.wait(POLL_SECONDS)
        else:
            stopping.wait(POLL_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    for sender in senders:
        sender.join(max(deadline - time.monotonic(), 0.0))


def deliver_due() -> int:
    """Delivers, one after the other, until nothing is due any more; returns how many attempts that took."""
    count = 0
    while claims := _claim(MOST_AT_ONCE):
        for claim in claims:
            deliver(claim)
        count += len(claims)
    return count


def _claim(limit: int) -> list[Claim]:
    if limit <= 0:
        return []
    try:
        with session_scope(tenant=EVERY_TENANT, role="worker") as session:
            return leases.claim_due(session, limit=limit)
    except SQLAlchemyError as error:
        log.warning("webhooks_not_claimed", error=_first_line(error))
        return []


def _deliver_and_tell(claim: Claim, finished: threading.Event) -> None:
    try:
        deliver(claim)
    except SQLAlchemyError as error:  # the lease runs out, and the message is sent again
        log.warning("webhook_not_recorded", delivery=claim.delivery_id, error=_first_line(error))
    except Exception:
        log.exception("webhook_not_recorded", delivery=claim.delivery_id)
    finally:
        finished.set()


def deliver(claim: Claim) -> DeliveryState | None:
    """Sends one claimed delivery and records what came of it; None where there was nothing to send or the claim is lost."""
    with session_scope(tenant=claim.tenant, role="worker") as session:
        errand = leases.prepare(session, claim=claim)
    if errand is None:
        return None
    began = time.monotonic()
    try:
        answer = send(errand.message, url=errand.url, secrets=errand.secrets, now=errand.now)
    except Exception:  # else the message would be tried for ever without being counted
        log.exception("webhook_send_failed", tenant=claim.tenant, webhook=errand.webhook_id)
        answer = Answer(None, "an internal error; the service's log holds it")
    seconds = time.monotonic() - began
    reach("webhook_sent")
    with session_scope(tenant=claim.tenant, role="worker") as session:
        state = leases.record(session, claim=claim, answer=answer, seconds=seconds)
    log.info(
        "webhook_attempted", tenant=claim.tenant, webhook=errand.webhook_id, delivery=claim.delivery_id,
        message=errand.message.id, event_type=errand.message.type, status=answer.status_code, error=answer.error,
        seconds=round(seconds, 3), state=state,
    )  # fmt: skip
    return state


def _first_line(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
