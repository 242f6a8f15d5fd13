"""Signing in with an API key: a cookie that stands for the key, checked against the database at every request.

The cookie holds a token (`service.credentials`), never the key. A revoked, rotated or expired key ends its sessions at once,
signing out ends the one.
Forms carry a second token bound to the first; a browser's own word on where a form comes from is asked for too.
"""

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import Depends, Request, Response
from sqlalchemy.orm import Session

from service.coalescing import Coalesced
from service.credentials import bound_to_session, new_session, read_key
from service.db import session_scope
from service.dependencies import note_caller
from service.errors import BadRequest, Forbidden, Unauthenticated
from service.response_headers import PAGES_PREFIX
from service.security import Principal, Scope, authenticate, authenticate_session
from service.turns import TurnDep, TurnTaken

COOKIE = "palimpsest_session"
SESSION_SECONDS = 12 * 3600
MOST_FIELDS = 2000
FORM_TYPE = "application/x-www-form-urlencoded"

# As for bearer keys: asked anew for every request, and a crowd with one session asks together.
_signed_in = Coalesced(authenticate_session)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at a page."""

    principal: Principal
    token: str

    @property
    def form_token(self) -> str:
        """What every form of this session carries."""
        return bound_to_session(self.token, "form")

    def may(self, scope: str) -> bool:
        """Says whether the visitor's key has the scope; pages offer nothing that would be refused."""
        return scope in self.principal.scopes


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form that was sent."""

    fields: Mapping[str, Sequence[str]]

    def one(self, name: str) -> str | None:
        """Returns the field's value without blanks around it; None where it is absent or empty."""
        return self.fields.get(name, [""])[0].strip() or None

    def many(self, name: str) -> list[str]:
        """Returns every value of the field."""
        return list(self.fields.get(name, []))

    def digest(self) -> str:
        """Returns a hash of all that was sent: the same for the same form, sent again."""
        return hashlib.sha256(json.dumps(sorted(self.fields.items())).encode()).hexdigest()


def new_form() -> str:
    """Returns the number of a form that is to be acted on once, however often it is sent."""
    return secrets.token_hex(16)


def sign_in(raw_key: str) -> str:
    """Returns the token of a new session. Raises `Unauthenticated`, and `Forbidden` for a key that may not read."""
    authenticate(raw_key).require(Scope.READ)
    key = read_key(raw_key)
    assert key is not None  # noqa: S101  # it was authenticated
    return new_session(key, expires_at=int(time.time()) + SESSION_SECONDS)


def set_cookie(request: Request, response: Response, token: str) -> None:
    """Gives the browser its session: for pages alone, and out of reach of scripts.

    A link from elsewhere, from a mail, may open a page, which changes nothing; no other request of another site carries it.
    """
    response.set_cookie(
        COOKIE, token, max_age=SESSION_SECONDS, path=PAGES_PREFIX, httponly=True, samesite="lax",
        secure=_over_https(request),
    )  # fmt: skip


def _over_https(request: Request) -> bool:
    # Behind a proxy that ends TLS only the browser knows.
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


async def get_visitor(request: Request) -> Visitor:
    """Returns who looks at the page, and counts the request against their key's rate limit."""
    token = request.cookies.get(COOKIE)
    if token is None:
        raise Unauthenticated("Sign in with an API key to see this page.", code="signed_out")
    principal = await _signed_in.get(token)
    await note_caller(request, principal, credential=token)
    principal.require(Scope.READ)
    return Visitor(principal, token)


VisitorDep = Annotated[Visitor, Depends(get_visitor)]


def get_page_session(visitor: VisitorDep, _turn: TurnDep) -> Iterator[Session]:
    """Yields the request's session, bound to the visitor's tenant; it commits before the answer is sent."""
    with session_scope(tenant=visitor.principal.tenant, key_id=visitor.principal.key_id) as session:
        yield session


def get_page_session_in_turn(
    session: Annotated[Session, Depends(get_page_session, scope="function")], _taken: TurnTaken
) -> Session:
    """Returns the request's session, in its turn."""
    return session


SessionDep = Annotated[Session, Depends(get_page_session_in_turn, scope="function")]


async def read_form(request: Request) -> Form:
    """Returns the form that was sent from a page of this service. Raises `Forbidden` for one from elsewhere."""
    require_same_origin(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise BadRequest(f"A form comes as {FORM_TYPE}.", code="not_a_form")
    try:
        fields = parse_qs((await request.body()).decode(), max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise BadRequest("The form could not be read.", code="not_a_form") from None
    return Form(fields)


async def read_own_form(visitor: VisitorDep, form: Annotated[Form, Depends(read_form)]) -> Form:
    """Returns a form of the visitor's own session. Raises `Forbidden` for any other."""
    if not hmac.compare_digest((form.one("token") or "").encode(), visitor.form_token.encode()):
        raise Forbidden(
            "This form belongs to another session. Open the page again and send it from there.",
            code="form_not_yours",
        )
    return form


OpenForm = Annotated[Form, Depends(read_form)]
"""A form of whoever is not signed in yet."""
OwnForm = Annotated[Form, Depends(read_own_form)]


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # no address at all
        return ""


def require_same_origin(request: Request) -> None:
    """Raises `Forbidden` unless the browser says that the request comes from a page of this very service."""
    fetched = request.headers.get("sec-fetch-site")
    if fetched is not None:
        own = fetched == "same-origin"
    else:  # an older browser; behind a proxy the scheme may differ, the host not
        own = _host_of(request.headers.get("origin", "")) == request.headers.get("host", "-")
    if not own:
        raise Forbidden("This form did not come from a page of this service.", code="foreign_origin")
