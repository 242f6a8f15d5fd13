"""How the service's own log lines look in the tests."""

import structlog


def plain_lines() -> None:
    """Sets structlog up as it is by default, but for tracebacks: pictures of every local variable take half a minute each."""
    structlog.reset_defaults()
    processors = structlog.get_config()["processors"]
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*processors[:-1], renderer])
