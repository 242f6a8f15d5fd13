"""Errors on pages are pages: what the API answers as a problem document, in words and with a way back."""

import json
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.sse import EventSourceResponse

from service.errors import PROBLEM_JSON
from service.response_headers import PAGES_PREFIX, is_page
from service.web.rendering import page

SIGN_IN = f"{PAGES_PREFIX}/signin"
SIGN_OUT = f"{PAGES_PREFIX}/signout"
LONGEST_NEXT = 2000
Handler = Callable[[Request, Any], Response | Awaitable[Response]]


def install_error_pages(app: FastAPI) -> None:
    """Makes errors under the pages' prefix pages. Comes after the handlers that make problem documents."""
    for kind, handler in list(app.exception_handlers.items()):
        app.add_exception_handler(kind, _with_pages(handler))


def _with_pages(handler: Handler) -> Any:
    async def answer(request: Request, error: Exception) -> Response:
        given = handler(request, error)
        response = await given if isawaitable(given) else given
        is_problem = response.headers.get("content-type", "").startswith(PROBLEM_JSON)
        return _page_of(request, response) if is_page(request.url.path) and is_problem else response

    return answer


def _page_of(request: Request, response: Response) -> Response:
    problem = json.loads(bytes(response.body))
    if response.status_code == 401 and request.url.path == SIGN_OUT:
        return RedirectResponse(SIGN_IN, status_code=303)  # signed out already: there is nothing left to do
    if response.status_code == 401 and request.method == "GET":
        return _to_sign_in(request, problem)
    kept = {
        name: value
        for name, value in response.headers.items()
        if name not in ("content-type", "content-length")
    }
    return page(
        "error.html",
        visitor=None,
        status=response.status_code,
        headers=kept,
        problem=problem,
        back=_way_back(request),
    )


def _to_sign_in(request: Request, problem: dict[str, Any]) -> Response:
    if EventSourceResponse.media_type in request.headers.get("accept", ""):
        return Response(status_code=204)  # a page that listens comes no more, and asks for its state instead
    query = {"next": _asked_for(request)}
    if problem["code"] != "signed_out":
        query["ended"] = "1"
    return RedirectResponse(f"{SIGN_IN}?{urlencode(query)}", status_code=303)


def _asked_for(request: Request) -> str:
    """The page with its filters; without them where they are too much to come back with."""
    path, query = request.url.path, request.url.query
    whole = f"{path}?{query}" if query else path
    return whole if len(whole) <= LONGEST_NEXT and own_path(whole) == whole else path


def _way_back(request: Request) -> str:
    """The page the visitor came from, where it is one of this service."""
    try:
        came_from = urlsplit(request.headers.get("referer", ""))
    except ValueError:  # no address at all
        return PAGES_PREFIX
    if came_from.netloc != request.headers.get("host"):  # of the scheme only the proxy knows that ends TLS
        return PAGES_PREFIX
    return own_path(f"{came_from.path}?{came_from.query}" if came_from.query else came_from.path)


def own_path(path: str | None) -> str:
    """Returns `path` if it is one of the pages' own; the first page for anything that could lead elsewhere."""
    plain = path is not None and path.isascii() and path.isprintable() and "\\" not in path
    return path if path and plain and is_page(path.partition("?")[0]) else PAGES_PREFIX
