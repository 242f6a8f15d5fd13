"""What routes depend on: who is asking, their session, the page they want."""

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session
from starlette.concurrency import run_in_threadpool

from service.coalescing import Coalesced
from service.db import session_scope
from service.errors import Unauthenticated, Unprocessable
from service.rate_limits import RateLimiter, get_rate_limiter
from service.request_context import bind_caller
from service.response_headers import STATE
from service.security import Principal, Scope, authenticate
from service.turns import TurnDep, TurnTaken

bearer = HTTPBearer(
    auto_error=False,
    bearerFormat="plm_<prefix>_<secret>",
    description="An API key made by `palimpsest keys create`",
)


# Asked anew for every request, so that a revocation takes effect at once; a crowd with one key asks together.
_authenticated = Coalesced(authenticate)


async def get_principal(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
) -> Principal:
    """Returns who sent the request, from its bearer key, and counts the request against the key's rate limit."""
    if credentials is None:
        raise Unauthenticated(
            "This call needs an API key: send 'Authorization: Bearer plm_…'. `palimpsest keys create` makes one.",
            param="Authorization",
            headers={"WWW-Authenticate": 'Bearer realm="palimpsest"'},
        )
    principal = await _authenticated.get(credentials.credentials)
    await note_caller(request, principal, credential=credentials.credentials)
    return principal


async def note_caller(request: Request, principal: Principal, *, credential: str) -> None:
    """Names the caller in the log and counts the request against the key's rate limit. Raises `TooManyRequests`."""
    bind_caller(tenant=principal.tenant, key_prefix=credential.split("_")[1])
    if limiter := get_rate_limiter():
        await run_in_threadpool(_count, request, principal, limiter)


def _count(request: Request, principal: Principal, limiter: RateLimiter) -> None:
    standing = limiter.hit(principal.key_id)
    if standing is not None:
        setattr(request.state, STATE, standing.headers())
        standing.require()


def requires(scope: Scope) -> Callable[[Principal], Awaitable[Principal]]:
    """Returns a dependency that lets only keys with `scope` pass, and hands on the principal."""

    async def check(principal: Annotated[Principal, Depends(get_principal)]) -> Principal:
        principal.require(scope)
        return principal

    return check


def get_session(principal: Annotated[Principal, Depends(get_principal)], _turn: TurnDep) -> Iterator[Session]:
    """Yields the request's session, bound to the caller's tenant; it commits before the response is sent.

    It opens no connection before it is used, and is to be used in the request's turn.
    """
    with session_scope(tenant=principal.tenant, key_id=principal.key_id) as session:
        yield session


def get_session_in_turn(
    session: Annotated[Session, Depends(get_session, scope="function")],
    _taken: TurnTaken,
) -> Session:
    """Returns the request's session, in its turn."""
    return session


SessionDep = Annotated[Session, Depends(get_session_in_turn, scope="function")]
LaterSessionDep = Annotated[Session, Depends(get_session, scope="function")]
"""For a route that takes its turn itself, after it has taken in a long body."""
Reader = Annotated[Principal, Depends(requires(Scope.READ))]
Ingester = Annotated[Principal, Depends(requires(Scope.INGEST))]
Trainer = Annotated[Principal, Depends(requires(Scope.TRAIN))]
Credentials = Annotated[HTTPAuthorizationCredentials, Security(bearer)]
"""The key as it was sent, for a route that also asks for a principal and so has one."""
Deployer = Annotated[Principal, Depends(requires(Scope.DEPLOY))]
Admin = Annotated[Principal, Depends(requires(Scope.ADMIN))]


T = TypeVar("T")
Row = TypeVar("Row")


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    data: list[T]
    has_more: bool
    next_cursor: str | None = Field(description="Pass as `cursor` to get the next page; null on the last one")


class PageRequest(BaseModel):
    """Which part of a list is wanted."""

    limit: int
    after: int | None

    def select(
        self,
        session: Session,
        statement: Select[Row],
        *,
        key: InstrumentedAttribute[int],
        newest_first: bool = False,
    ) -> tuple[list[Row], str | None]:
        """Runs `statement` for this page in the order of the unique integer `key`; returns rows and next cursor."""
        if self.after is not None:
            statement = statement.where(key < self.after if newest_first else key > self.after)
        statement = statement.order_by(key.desc() if newest_first else key.asc()).limit(self.limit + 1)
        rows: list[Row] = list(session.scalars(statement))
        if len(rows) <= self.limit:
            return rows, None
        rows = rows[: self.limit]
        return rows, encode_cursor(getattr(rows[-1], key.key))


Limit = Annotated[int, Query(ge=1, le=500, description="How many rows at most")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before")]


def get_page_request(limit: Limit = 50, cursor: Cursor = None) -> PageRequest:
    """Reads `?limit=&cursor=`."""
    return PageRequest(limit=limit, after=decode_cursor(cursor) if cursor is not None else None)


PageDep = Annotated[PageRequest, Depends(get_page_request)]


def encode_cursor(key: int) -> str:
    """Returns the opaque form of a row's key."""
    return opaque_cursor(str(key))


def decode_cursor(cursor: str) -> int:
    """Returns the key inside a cursor. Raises `Unprocessable` for one this service did not make."""
    try:
        key = int(read_cursor(cursor))
    except ValueError:
        raise invalid_cursor() from None
    if not 0 <= key < 2**63:
        raise invalid_cursor()
    return key


def opaque_cursor(position: str) -> str:
    """Returns the opaque form of a position in a list."""
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> str:
    """Returns the position inside a cursor. Raises `Unprocessable` for what is no cursor at all."""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise invalid_cursor() from None


def invalid_cursor() -> Unprocessable:
    """The error for a cursor that this service did not make, or made for another list."""
    return Unprocessable(
        "`cursor` is not one this service gave out; leave it away to start from the beginning.",
        code="invalid_cursor", param="cursor",
    )  # fmt: skip


def page_of(rows: list[Any], next_cursor: str | None) -> dict[str, Any]:
    """Returns the list envelope around rows already in their public shape."""
    return {"data": rows, "has_more": next_cursor is not None, "next_cursor": next_cursor}
