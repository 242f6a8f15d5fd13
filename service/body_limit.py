"""A cap on request bodies, whether or not they announce their length, and no compressed ones, which would pass it."""

import re

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_response

NDJSON = b"application/x-ndjson"
STREAMS = (
    (re.compile(r"/v1/models/[^/]+/tasks/[^/]+/examples/?"), NDJSON),
    (re.compile(r"/v1/models/[^/]+/versions:import/?"), b"application/x-tar"),
)


class BodyLimit:
    """ASGI middleware: a body over `max_bytes` is answered 413, an encoded one 415.

    The calls that stream NDJSON or a tar have a limit of their own.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, counting its body as it is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (encoding := _encoding(scope)) is not None:
            await _refuse_encoding(encoding, scope, receive, send)
        elif _streams(scope):
            await self._app(scope, receive, send)
        else:
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


def _encoding(scope: Scope) -> str | None:
    if scope["method"] in {"GET", "HEAD", "OPTIONS"}:  # whose bodies nobody reads
        return None
    encoding = _header(scope, b"content-encoding").strip().decode("latin-1")
    return None if encoding in {"", "identity"} else encoding


async def _refuse_encoding(encoding: str, scope: Scope, receive: Receive, send: Send) -> None:
    refusal = problem_response(
        Request(scope), status=415, code="unsupported_media_type", param="Content-Encoding",
        detail=f"Content-Encoding '{encoding[:50]}' is not read here; send the body uncompressed.",
        headers={"Accept-Encoding": "identity"},
    )  # fmt: skip
    await refusal(scope, receive, send)


def _streams(scope: Scope) -> bool:
    return scope["method"] == "POST" and any(
        path.fullmatch(scope["path"]) is not None and _header(scope, b"content-type").startswith(media_type)
        for path, media_type in STREAMS
    )


def _header(scope: Scope, wanted: bytes) -> bytes:
    for name, value in scope["headers"]:
        if name == wanted:
            return bytes(value).lower()
    return b""
