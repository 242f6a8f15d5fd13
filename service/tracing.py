"""OpenTelemetry traces: one per update, from the request that asked for it to its promotion. Off unless configured.

With an endpoint set, FastAPI makes a span of every request, the update's row keeps that span's address, and whoever
works on the update goes on from there. Without one nothing here does anything, and the SDK is not even imported.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog import get_logger
from structlog.contextvars import get_contextvars

from service.config import get_settings

log = get_logger(__name__)
Given = ParamSpec("Given")
Answer = TypeVar("Answer")
Attributes = Mapping[str, str | int | bool]

UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})
BOUND = ("tenant", "update", "attempt", "fence", "request_id")  # of a log line, and so of a span
_w3c = TraceContextTextMapPropagator()


@dataclass(slots=True)
class _Tracing:
    """The process's provider of spans, of which there is one; none while tracing is off."""

    provider: trace.TracerProvider | None = None
    close: Callable[[], None] = lambda: None


_tracing = _Tracing()


def configure_tracing(service_name: str) -> None:
    """Starts tracing where the settings name an endpoint. Doing so again changes nothing.

    A missing SDK costs the traces and a warning, never the service.
    """
    endpoint = get_settings().traces_endpoint
    if not endpoint or is_on():
        return
    try:
        from service.trace_export import start_exporting
    except ImportError as error:
        log.warning("tracing_not_available", missing=error.name, install="pip install 'palimpsest[otel]'")
        return
    _tracing.provider, _tracing.close = start_exporting(endpoint, service_name=service_name)


def stop_tracing() -> None:
    """Sends what is left, for two seconds at most, and switches tracing off."""
    _tracing.close()
    _tracing.provider, _tracing.close = None, lambda: None


def is_on() -> bool:
    """Says whether this process traces."""
    return _tracing.provider is not None


def telemetry_of_requests() -> TelemetryConfig:
    """What FastAPI is told: a span per request and no more; probes, scrapes and metrics of its own are left out."""
    return {
        "tracing": is_on(),
        "tracer_provider": _tracing.provider,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope.get("path") in UNTRACED,
    }


def current_traceparent() -> str | None:
    """The address of the span at hand, as the W3C's `traceparent`; None outside of one."""
    carrier: dict[str, str] = {}
    if is_on():
        _w3c.inject(carrier)
    return carrier.get("traceparent")


def current_trace_id() -> str | None:
    """The trace at hand, in 32 hexadecimal digits; None outside of one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


@contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    linked_with: str | None = None,
    attributes: Attributes | None = None,
) -> Iterator[None]:
    """A span around a piece of work, with everything that log lines are bound to.

    `parent` and `linked_with` are `traceparent`s; without a parent the span at hand is it. An error is named by its
    code or type alone: messages may hold people's texts.
    """
    bound = get_contextvars()
    known = {f"palimpsest.{key}": bound[key] for key in BOUND if bound.get(key) is not None}
    with _tracer().start_as_current_span(
        name,
        context=_context(parent),
        links=_links(linked_with),
        attributes={**known, **(attributes or {})},
        record_exception=False,
        set_status_on_exception=False,
    ):
        try:
            yield
        except BaseException as error:
            mark_failed(getattr(error, "code", None) or type(error).__name__)
            raise


def traced(name: str) -> Callable[[Callable[Given, Answer]], Callable[Given, Answer]]:
    """Makes every call of a function a span."""

    def decorate(function: Callable[Given, Answer]) -> Callable[Given, Answer]:
        @wraps(function)
        def within_span(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
            with span(name):
                return function(*args, **kwargs)

        return within_span

    return decorate


def mark_failed(code: object) -> None:
    """Marks the span at hand as failed, with a stable code."""
    here = trace.get_current_span()
    here.set_attribute("error.type", str(code))
    here.set_status(trace.StatusCode.ERROR)


def noting(name: str, *, within: str | None, attributes: Attributes) -> Callable[[], None]:
    """Returns what notes an event of an update: on the span at hand, and in the update's own trace.

    `within` is the update's `traceparent`. A request or sweep of another trace leaves a span without length in the
    update's, linked with its own.
    """
    here = trace.get_current_span()

    def note() -> None:
        here.add_event(name, attributes)
        here.set_attributes(attributes)
        home = _span_context(within)
        if home is None or home.trace_id == here.get_span_context().trace_id:
            return
        links = [trace.Link(here.get_span_context())] if here.get_span_context().is_valid else []
        _tracer().start_span(name, context=_context(within), links=links, attributes=attributes).end()

    return note


def merge_trace(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: adds the trace and the span at hand."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event.setdefault("trace_id", trace.format_trace_id(context.trace_id))
        event.setdefault("span_id", trace.format_span_id(context.span_id))
    return event


def _tracer() -> trace.Tracer:
    provider = _tracing.provider
    return provider.get_tracer("palimpsest") if provider is not None else trace.NoOpTracer()


def _context(traceparent: str | None) -> Context | None:
    return _w3c.extract({"traceparent": traceparent}, context=Context()) if traceparent else None


def _span_context(traceparent: str | None) -> trace.SpanContext | None:
    context = trace.get_current_span(_context(traceparent)).get_span_context() if traceparent else None
    return context if context is not None and context.is_valid else None


def _links(traceparent: str | None) -> list[trace.Link]:
    context = _span_context(traceparent)
    return [trace.Link(context)] if context is not None else []
