"""Headers of every answer: what browsers must not do with it, who may cache it, how the key's rate limit stands."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATE = "response_headers"  # a dict under this name in the request's state adds to its answer's headers
API = "default-src 'none'; frame-ancestors 'none'"
# The pages for people: everything from this service, nothing written into the page itself.
PAGES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
PAGES_PREFIX = "/ui"
STATIC_PREFIX = "/ui/static/"
# Swagger UI, served here; some of its pictures are data.
DOCUMENTATION = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
DOCUMENTATION_PATH = "/docs"


def is_page(path: str) -> bool:
    """Says whether a path belongs to the pages for people."""
    return path == PAGES_PREFIX or path.startswith(f"{PAGES_PREFIX}/")


def safe_headers(path: str) -> dict[str, str]:
    """Returns the headers that an answer at `path` carries unless its route sets them otherwise."""
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": _policy(path)}
    # A page's own forms name their origin only if the referrer may be told to this very service.
    headers["Referrer-Policy"] = "same-origin" if is_page(path) else "no-referrer"
    if is_page(path):
        # Another site may link here; it may neither hold on to the window nor show our pictures as its own.
        headers |= {
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
    if path.startswith(STATIC_PREFIX):
        headers["Cache-Control"] = "no-cache"  # kept, and asked for by its ETag
    elif path.startswith("/v1") or is_page(path):
        headers["Cache-Control"] = "no-store"
    return headers


def _policy(path: str) -> str:
    if is_page(path):
        return PAGES
    return DOCUMENTATION if path == DOCUMENTATION_PATH else API


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
