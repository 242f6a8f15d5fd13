"""A cap on request bodies, whether or not they announce their length."""

import re

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NDJSON = b"application/x-ndjson"
INGEST = re.compile(r"/v1/models/[^/]+/tasks/[^/]+/examples/?")


class BodyLimit:
    """ASGI middleware: a body over `max_bytes` is answered 413. The one call that streams NDJSON has its own limit."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, counting its body as it is read."""
        if scope["type"] != "http" or _streams(scope):
            await self._app(scope, receive, send)
            return
        await self._app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(
                    413,
                    f"The body is over the limit of {self._max_bytes} bytes for JSON; send examples as application/x-ndjson.",
                )
            return message

        return counted


def _streams(scope: Scope) -> bool:
    return (
        scope["method"] == "POST"
        and INGEST.fullmatch(scope["path"]) is not None
        and _content_type(scope).startswith(NDJSON)
    )


def _content_type(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bytes(value).lower()
    return b""
