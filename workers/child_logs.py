"""The child's log: JSON lines on stderr like the worker's, with the same names, and of the standard library alone.

What the worker knows of the update at hand (tenant, update, attempt, fence, request id) comes over the pipe with each
request and stands in every line.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_context: dict[str, Any] = {}


class JsonLine(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as a line, within the context of the request at hand."""
        line = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "child_pid": os.getpid(),
            **_context,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_child_logging() -> None:
    """Sends everything this process logs or warns of to stderr, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    for name in ("transformers", "httpx"):
        noisy = logging.getLogger(name)
        noisy.handlers, noisy.propagate = [], True
        noisy.setLevel(logging.WARNING)


def bind_context(context: Mapping[str, Any]) -> None:
    """Makes `context` part of every later line, in place of the one before."""
    _context.clear()
    _context.update(context)
