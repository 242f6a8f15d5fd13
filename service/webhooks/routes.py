"""Webhooks over HTTP: managed by keys with the scope `admin`, seen by those with `read`."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response
from sqlalchemy import select

from service.dependencies import Admin, Page, PageDep, Reader, SessionDep, page_of
from service.idempotency import IdempotencyDep
from service.models import DeliveryState, Webhook, WebhookDelivery
from service.webhooks import commands, queries
from service.webhooks.addresses import check_in_time
from service.webhooks.schemas import (
    DeliveryRead,
    WebhookChange,
    WebhookCreate,
    WebhookRead,
    WebhookRotate,
    WebhookWithSecret,
)

router = APIRouter(tags=["Webhooks"])

SECRET = frozenset({"secret"})
WebhookPath = Annotated[
    str, Path(alias="webhook", max_length=64, pattern=r"^[A-Za-z0-9_]+$", description="Id of the webhook")
]
DeliveryPath = Annotated[
    str, Path(alias="delivery", max_length=64, pattern=r"^[A-Za-z0-9_]+$", description="Id of the delivery")
]


# Names are resolved before the request's session begins a transaction: none is open while a socket waits.
async def _checked_new(_principal: Admin, body: WebhookCreate) -> WebhookCreate:
    await check_in_time(body.url)
    return body


async def _checked_change(_principal: Admin, body: WebhookChange) -> WebhookChange:
    if body.url is not None:
        await check_in_time(body.url)
    return body


@router.post("/webhooks", status_code=201, response_model=WebhookWithSecret, summary="Create a webhook")
def create_webhook(
    principal: Admin,
    body: Annotated[WebhookCreate, Depends(_checked_new)],
    session: SessionDep,
    idempotency: IdempotencyDep,
) -> Response:
    """Makes a webhook that is told of your tenant's events. The secret that its messages are signed with is shown this once.

    Messages follow [Standard Webhooks](https://www.standardwebhooks.com); a message may come more than once, and in any order.
    """
    webhook, secret = commands.create_webhook(
        session, request=body, tenant=principal.tenant, actor=principal.actor
    )
    answer = WebhookWithSecret.made(webhook, secret=secret)
    return idempotency.keep(
        201, answer, headers={"Location": f"/v1/webhooks/{webhook.id}"}, without=SECRET
    )  # fmt: skip


@router.get("/webhooks", summary="List webhooks")
def list_webhooks(principal: Reader, session: SessionDep, page: PageDep) -> Page[WebhookRead]:
    """Lists the tenant's webhooks without their secrets, oldest first."""
    rows, cursor = page.select(session, select(Webhook), key=Webhook.seq)
    return Page[WebhookRead](
        **page_of(queries.describe_webhooks(session, webhooks=rows, principal=principal), cursor)
    )


@router.get("/webhooks/{webhook}", summary="Read a webhook")
def read_webhook(webhook: WebhookPath, principal: Reader, session: SessionDep) -> WebhookRead:
    """Shows one webhook without its secret, and since when it fails."""
    row = queries.get_webhook(session, webhook=webhook)
    return queries.describe_webhooks(session, webhooks=[row], principal=principal)[0]


@router.patch("/webhooks/{webhook}", summary="Change a webhook")
def change_webhook(
    webhook: WebhookPath,
    principal: Admin,
    body: Annotated[WebhookChange, Depends(_checked_change)],
    session: SessionDep,
) -> WebhookRead:
    """Changes address, events or description, or switches the webhook on or off. What is left out stays."""
    row = commands.change_webhook(session, webhook=webhook, change=body, actor=principal.actor)
    return queries.describe_webhooks(session, webhooks=[row], principal=principal)[0]


@router.delete("/webhooks/{webhook}", status_code=204, summary="Delete a webhook")
def delete_webhook(webhook: WebhookPath, principal: Admin, session: SessionDep) -> None:
    """Deletes the webhook with its secrets and its log. What is pending is not sent."""
    commands.delete_webhook(session, webhook=webhook, actor=principal.actor)


@router.post(
    "/webhooks/{webhook}/rotate", response_model=WebhookWithSecret, summary="Replace a webhook's secret"
)
def rotate_webhook(
    webhook: WebhookPath,
    principal: Admin,
    session: SessionDep,
    idempotency: IdempotencyDep,
    body: WebhookRotate | None = None,
) -> Response:
    """Gives the webhook a new secret, shown this once. During the overlap, a day by default, messages carry the signatures of
    both, so that receivers can change over in their own time."""
    overlap = timedelta(seconds=(body or WebhookRotate()).overlap_seconds)
    row, secret, ends = commands.rotate_secret(
        session, webhook=webhook, overlap=overlap, actor=principal.actor
    )
    return idempotency.keep(
        200, WebhookWithSecret.made(row, secret=secret, overlap_ends=ends), without=SECRET
    )  # fmt: skip


@router.post(
    "/webhooks/{webhook}/test", status_code=202, response_model=DeliveryRead, summary="Send a test message"
)
def send_test(
    webhook: WebhookPath, _principal: Admin, session: SessionDep, idempotency: IdempotencyDep
) -> Response:
    """Sends `webhook.test`, whatever the webhook is to be told of; the delivery shows what came of it."""
    return idempotency.keep(202, DeliveryRead.of(commands.send_test(session, webhook=webhook)))


@router.get("/webhooks/{webhook}/deliveries", summary="List what was sent to a webhook")
def list_deliveries(
    webhook: WebhookPath,
    _principal: Reader,
    session: SessionDep,
    page: PageDep,
    state: Annotated[DeliveryState | None, Query(description="Only deliveries of this state")] = None,
) -> Page[DeliveryRead]:
    """Lists the webhook's deliveries, newest first, with their latest attempts. Finished ones are kept for a month, unless
    the operator chose otherwise."""
    row = queries.get_webhook(session, webhook=webhook)
    rows, cursor = page.select(
        session, queries.deliveries_of(row, state=state), key=WebhookDelivery.seq, newest_first=True
    )
    return Page[DeliveryRead](**page_of([DeliveryRead.of(row) for row in rows], cursor))


@router.get("/webhooks/{webhook}/deliveries/{delivery}", summary="Read a delivery")
def read_delivery(
    webhook: WebhookPath, delivery: DeliveryPath, _principal: Reader, session: SessionDep
) -> DeliveryRead:
    """Shows an event that the webhook was told of, and what came of it."""
    return DeliveryRead.of(queries.get_delivery(session, webhook=webhook, delivery=delivery))


@router.post(
    "/webhooks/{webhook}/deliveries/{delivery}/replay",
    status_code=202,
    response_model=DeliveryRead,
    summary="Send a message again",
)
def replay_delivery(
    webhook: WebhookPath,
    delivery: DeliveryPath,
    _principal: Admin,
    session: SessionDep,
    idempotency: IdempotencyDep,
) -> Response:
    """Sends a delivery again at once, whatever came of it before, under the same `webhook-id`."""
    row = commands.replay_delivery(session, webhook=webhook, delivery=delivery)
    return idempotency.keep(202, DeliveryRead.of(row))
