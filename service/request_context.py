"""What is known of the request at hand: its id from the start, the caller once the key is checked.

The id comes from `X-Request-Id` where the client sends a fit one, else it is made here. It goes back with the
answer, into every log line and problem document, and onto the updates the request makes.
"""

import re
import secrets
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
FIT = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

# One dictionary per request, changed in place: dependencies run in threads, whose own context variables are lost.
_bound: ContextVar[dict[str, str] | None] = ContextVar("request", default=None)


def request_id() -> str | None:
    """The id of the request at hand; None outside of one."""
    return (_bound.get() or {}).get("request_id")


def bind_caller(*, tenant: str, key_prefix: str) -> None:
    """Notes who sent the request at hand, for the log."""
    bound = _bound.get()
    if bound is not None:
        bound.update(tenant=tenant, key_prefix=key_prefix)


def bind_update(update: str) -> None:
    """Notes which update the request at hand makes or changes, for the log; nothing outside of a request."""
    bound = _bound.get()
    if bound is not None:
        bound["update"] = update


def merge_request(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: adds what is known of the request; a line's own fields win."""
    for name, value in (_bound.get() or {}).items():
        event.setdefault(name, value)
    return event


class RequestContext:
    """ASGI middleware: gives every request its id and sends it back with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request under its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        chosen = given if FIT.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        _bound.set({"request_id": chosen})
        scope.setdefault("state", {})["request_id"] = (
            chosen  # the handler of last resort runs outside of this
        )

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = chosen
            await send(message)

        await self._app(scope, receive, send_with_id)
