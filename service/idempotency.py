"""Idempotency-Key: the same creating request sent twice creates once and is answered alike.

The stored answer commits in the same transaction as what it created, so no crash can part the two.
An advisory lock held to the end of that transaction makes a request still in flight visible to its twin.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse
from psycopg.errors import LockNotAvailable
from pydantic import BaseModel
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.dependencies import LaterSessionDep, SessionDep, get_principal
from service.errors import Conflict, Unprocessable
from service.models import IdempotencyKey
from service.security import Principal

WAIT_SECONDS = 5  # for a twin: whoever waits holds a thread, a turn and a connection


class IdempotentReplay(Exception):
    """The request was answered before; carries that answer."""

    def __init__(self, row: IdempotencyKey) -> None:
        super().__init__(row.key)
        self.status, self.headers, self.body = row.status, row.headers, row.body


def replay_response(_request: Request, replay: Exception) -> JSONResponse:
    """Sends the stored answer again, marked as a replay."""
    assert isinstance(replay, IdempotentReplay)  # noqa: S101  # registered for this type alone
    headers = {**replay.headers, "Idempotent-Replayed": "true"}
    return JSONResponse(replay.body, status_code=replay.status, headers=headers)


class Idempotency:
    """The `Idempotency-Key` of one request, if it has one."""

    def __init__(self, session: Session, *, tenant: str, key: str | None, request: str) -> None:
        self._session, self._tenant, self._key, self._request = session, tenant, key, request
        self._fingerprint = b""

    def within(self, session: Session) -> "Idempotency":
        """Returns the same key of the same request, to be looked up in a shorter transaction than the request's own."""
        return Idempotency(session, tenant=self._tenant, key=self._key, request=self._request)

    def is_known(self) -> bool:
        """Says whether a request came with this key before: what is wrong with this one then comes after `begin`."""
        if self._key is None:
            return False
        return (
            self._session.scalar(select(IdempotencyKey.key).where(IdempotencyKey.key == self._key))
            is not None
        )

    def begin(self, body: bytes, *, wait: bool = False) -> None:
        """Raises `IdempotentReplay` when this very request was answered before.

        `body` is the request's body or a digest of it. Raises `Conflict` while a twin is in flight, with `wait` only
        once its answer has been waited for, and `Unprocessable` when the key came with another request before.
        """
        if self._key is None:
            return
        self._fingerprint = hashlib.sha256(self._request.encode() + b"\0" + body).digest()
        lock = hashlib.sha256(f"{self._tenant}\0{self._key}".encode()).digest()
        number = int.from_bytes(lock[:8], signed=True)
        if not (self._locked_in_time(number) if wait else self._locked_at_once(number)):
            raise Conflict(
                "A request with this Idempotency-Key is still in flight; send it again in a moment.",
                code="idempotency_key_in_flight", param="Idempotency-Key", headers={"Retry-After": "1"},
            )  # fmt: skip
        row = self._session.scalar(select(IdempotencyKey).where(IdempotencyKey.key == self._key))
        if row is None:
            return
        if row.fingerprint != self._fingerprint:
            raise Unprocessable(
                "This Idempotency-Key came with another request before; use a new key for a new request.",
                code="idempotency_key_reused", param="Idempotency-Key",
            )  # fmt: skip
        raise IdempotentReplay(row)

    def _locked_at_once(self, number: int) -> bool:
        return bool(self._session.scalar(select(func.pg_try_advisory_xact_lock(number))))

    def _locked_in_time(self, number: int) -> bool:
        self._session.execute(text(f"SET LOCAL lock_timeout = '{WAIT_SECONDS}s'"))
        try:
            self._session.execute(select(func.pg_advisory_xact_lock(number)))
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            return False
        self._session.execute(text("SET LOCAL lock_timeout TO DEFAULT"))
        return True

    def keep(
        self,
        status: int,
        answer: BaseModel,
        *,
        headers: Mapping[str, str] | None = None,
        without: frozenset[str] = frozenset(),
    ) -> JSONResponse:
        """Returns the answer as a response, and stores it for a repeat of the request.

        Fields named by `without` are secrets: the repeat gets null in their place.
        """
        body: dict[str, Any] = answer.model_dump(mode="json")
        if self._key is not None:
            self._session.add(
                IdempotencyKey(
                    tenant_id=self._tenant, key=self._key, fingerprint=self._fingerprint,
                    status=status, headers=dict(headers or {}), body={**body, **dict.fromkeys(without)},
                )
            )  # fmt: skip
            self._session.flush()
        return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def idempotency_of_stream(
    request: Request,
    session: LaterSessionDep,
    principal: Annotated[Principal, Depends(get_principal)],
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$",
            description="Makes a repeat of this request harmless: it is answered as the first one was",
        ),
    ] = None,
) -> Idempotency:  # fmt: skip
    """Returns the request's idempotency for a route that calls `begin` itself, once it has spooled the body."""
    path = f"{request.method} {request.url.path}?{request.url.query}"
    return Idempotency(session, tenant=principal.tenant, key=key, request=path)


async def _body(request: Request) -> bytes:
    return await request.body()


def idempotency_of_body(
    body: Annotated[bytes, Depends(_body)],
    idempotency: Annotated[Idempotency, Depends(idempotency_of_stream)],
    _session: SessionDep,  # the request's turn
) -> Idempotency:
    """Returns the request's idempotency, begun with its body."""
    idempotency.begin(body)
    return idempotency


IdempotencyDep = Annotated[Idempotency, Depends(idempotency_of_body)]
StreamIdempotencyDep = Annotated[Idempotency, Depends(idempotency_of_stream)]
