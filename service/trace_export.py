"""Where spans go: in batches, from a thread of their own, to an OTLP/HTTP collector. Imported only where tracing is on.

Everything else of the SDK follows its own variables: OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TIMEOUT, OTEL_BSP_*.
"""

import atexit
import logging
import threading
from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from service.version import VERSION

CLOSING_SECONDS = 2.0


class WithoutQueries(SpanProcessor):
    """Keeps query strings out of spans: they may name people, as `?subject=` does."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Blanks the query of a request's span."""
        if "url.query" in (span.attributes or {}):
            span.set_attribute("url.query", "REDACTED")


def start_exporting(endpoint: str, *, service_name: str) -> tuple[TracerProvider, Callable[[], None]]:
    """Returns a provider whose spans go to `endpoint`/v1/traces, and what closes it within two seconds.

    The queue is bounded and whoever makes a span never waits: while the collector is away, spans are dropped.
    """
    # A collector that is away is one line, not one a second.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    named = Resource({"service.name": service_name, "service.version": VERSION})
    provider = TracerProvider(
        resource=Resource.get_empty().merge(named).merge(OTELResourceDetector().detect()),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(WithoutQueries())
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider, _closer(provider)


def _closer(provider: TracerProvider) -> Callable[[], None]:
    """Returns what shuts the provider down and waits a bounded time; it also runs when the process ends.

    The thread is there from the start: a process that ends can start none.
    """
    closing, closed = threading.Event(), threading.Event()

    def close_when_told() -> None:
        closing.wait()
        provider.shutdown()
        closed.set()

    threading.Thread(target=close_when_told, name="tracing-closer", daemon=True).start()

    def close() -> None:
        closing.set()
        closed.wait(CLOSING_SECONDS)

    atexit.register(close)
    return close
