"""GET /metrics, in Prometheus' text format."""

import asyncio

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.config import get_settings
from service.errors import NotFound
from service.metrics.database import DatabaseReader
from service.metrics.http import registry

router = APIRouter(tags=["Health"])
reader = DatabaseReader()


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses={404: {"description": "Metrics are switched off (PALIMPSEST_METRICS_ENABLED)"}},
)
async def metrics() -> PlainTextResponse:
    """Requests of this process, and updates, queue and storage as the database has them; asks for no key.

    A database that does not answer in time costs the parts read from it and counts in `palimpsest_scrape_errors_total`.
    """
    settings = get_settings()
    if not settings.metrics_enabled:
        raise NotFound("Metrics are switched off.", code="metrics_disabled")
    # Not in the pool of threads that requests run in: those may all be waiting for a database that hangs.
    scrape = await asyncio.to_thread(reader.read, timeout_seconds=settings.metrics_timeout_seconds)
    # The process's own come last: reading may have counted errors and events.
    body = generate_latest(scrape) + generate_latest(registry)
    return PlainTextResponse(body, media_type=CONTENT_TYPE_LATEST)
