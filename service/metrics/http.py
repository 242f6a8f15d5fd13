"""Requests counted and timed, by route template and never by raw path: a path holds names, and there are too many."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog import get_logger

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"
API_PREFIX = "/v1"
EVENT_STREAM = "text/event-stream"
PROBES = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds, and counted
log = get_logger(__name__)

registry = CollectorRegistry()
ProcessCollector(registry=registry)
PlatformCollector(registry=registry)
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

requests = Counter(
    "http_requests_total", "Requests answered", ["method", "route", "status"], registry=registry
)
durations = Histogram(
    "http_request_duration_seconds",
    "Seconds from a request's first byte to its answer's last",
    ["method", "route"],
    buckets=SECONDS,
    registry=registry,
)


class RequestMetrics:
    """ASGI middleware: logs and counts every request, and times those that are answered once, not as long as there are events."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request and counts it; one that ended in an exception is a 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, streams, began = 500, False, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                streams = Headers(raw=message["headers"]).get("content-type", "").startswith(EVENT_STREAM)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            method, route, seconds = _method(scope), route_template(scope), time.perf_counter() - began
            requests.labels(method, route, status).inc()
            if not streams:
                durations.labels(method, route).observe(seconds)
            _tell(scope, status=status, seconds=seconds)


def route_template(scope: Scope) -> str:
    """The matched route as it was declared, such as `/v1/models/{model}`; `unmatched` where none was."""
    declared: str | None = getattr(scope.get("route"), "path", None)
    if declared is None:
        return UNMATCHED
    # A router knows its routes without the prefix it was included under. Nothing of the path itself is taken over: a
    # parameter may span slashes, and what callers write must not make new series.
    inside = scope["path"].startswith(f"{API_PREFIX}/") and not declared.startswith(f"{API_PREFIX}/")
    return f"{API_PREFIX}{declared}" if inside else declared


def _tell(scope: Scope, *, status: int, seconds: float) -> None:
    """Logs the request, without its query: that may name a data subject."""
    if scope["path"] not in PROBES:
        log.info(
            "request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 4),
            client=(scope.get("client") or ("",))[0],
        )  # fmt: skip


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in METHODS else "OTHER"
