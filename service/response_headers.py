"""Headers of every answer: what browsers must not do with it, who may cache it, how the key's rate limit stands."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATE = "response_headers"  # a dict under this name in the request's state adds to its answer's headers
API = "default-src 'none'; frame-ancestors 'none'"
# What the pages of FastAPI load: Swagger UI and ReDoc from their CDN, started by an inline script.
PAGES = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; connect-src 'self'; "
    "style-src 'unsafe-inline' https://cdn.jsdelivr.net https://fonts.googleapis.com; font-src https://fonts.gstatic.com; "
    "img-src 'self' data: https://fastapi.tiangolo.com https://cdn.redoc.ly; worker-src blob:; frame-ancestors 'none'"
)
WITH_PAGES = frozenset({"/docs", "/docs/oauth2-redirect", "/redoc"})


def safe_headers(path: str) -> dict[str, str]:
    """Returns the headers that an answer at `path` carries unless its route sets them otherwise."""
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": PAGES if path in WITH_PAGES else API,
    }
    return {**headers, "Cache-Control": "no-store"} if path.startswith("/v1") else headers


class ResponseHeaders:
    """ASGI middleware: adds `safe_headers` and what the request's state holds to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**safe_headers(scope["path"]), **state.get(STATE, {})}.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
