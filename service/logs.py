"""Logging: one JSON object per line on stderr, or readable lines on a terminal."""

import logging
import re
import sys

import structlog

from service.request_context import merge_request
from service.tracing import merge_trace

# What Postgres says of the row that broke a constraint, up to the next part of the error or of the traceback.
DETAIL = re.compile(
    r"^DETAIL:.*?(?=^(?:HINT:|CONTEXT:|\[SQL|\(Background|Traceback|The above|During handling)|\Z)",
    re.MULTILINE | re.DOTALL,
)


def withhold_rows(
    _logger: object, _method: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Takes out of tracebacks what Postgres quotes of rows: it is people's data."""
    if isinstance(trace := event.get("exception"), str):
        event["exception"] = DETAIL.sub("DETAIL: (a row, withheld)\n", trace)
    return event


def configure_logging(level: int = logging.INFO) -> None:
    """Sets up structlog and the standard library's loggers alike."""
    timestamper = structlog.processors.TimeStamper(fmt="iso", utc=True)
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        merge_request,
        merge_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        timestamper,
        structlog.processors.format_exc_info,
        withhold_rows,
    ]
    terminal = sys.stderr.isatty()
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if terminal
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(logging.WARNING)
