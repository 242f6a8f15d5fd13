"""Turns: as many requests hold a database session at once as the pool keeps connections; the others wait for theirs.

They wait without a thread and without a connection, so that whoever holds a connection always finds a thread to go on in.
A turn is taken once the request's body is here, and never while a socket waits.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Annotated

from anyio import CapacityLimiter, fail_after
from fastapi import Depends, Request

from service.config import get_settings
from service.errors import Unavailable


@lru_cache
def _limiter(_loop: asyncio.AbstractEventLoop) -> CapacityLimiter:
    return CapacityLimiter(get_settings().database_pool_size)


@lru_cache
def _limiter_of_reads(_loop: asyncio.AbstractEventLoop) -> CapacityLimiter:
    return CapacityLimiter(max(1, get_settings().database_pool_size // 2))


class Turn:
    """One request's turn, taken when it is asked for and given back when the request is over."""

    def __init__(self, limiter: CapacityLimiter) -> None:
        self._limiter = limiter
        self._taken = False

    async def take(self) -> None:
        """Waits for the turn. Raises `Unavailable` when it does not come within `turn_timeout_seconds`."""
        if self._taken:
            return
        seconds = get_settings().turn_timeout_seconds
        try:
            with fail_after(seconds):
                await self._limiter.acquire_on_behalf_of(self)
        except TimeoutError:
            raise Unavailable(
                f"The service is busy: {self._limiter.borrowed_tokens} requests were before this one for {seconds:g} s. "
                "Send it again in a moment.",
                code="too_busy",
                headers={"Retry-After": "2"},
            ) from None
        self._taken = True

    def give_back(self) -> None:
        """Lets the next request have its turn."""
        if self._taken:
            self._limiter.release_on_behalf_of(self)


async def get_turn() -> AsyncIterator[Turn]:
    """Yields the request's turn, not taken yet."""
    turn = Turn(_limiter(asyncio.get_running_loop()))
    try:
        yield turn
    finally:
        turn.give_back()


@asynccontextmanager
async def in_turn() -> AsyncIterator[None]:
    """Holds a turn of its own, for one piece of an answer that is sent in pieces. Raises `Unavailable`."""
    async with _held(Turn(_limiter(asyncio.get_running_loop()))):
        yield


@asynccontextmanager
async def in_turn_of_reads() -> AsyncIterator[None]:
    """Holds a turn for one read that many callers share. Raises `Unavailable`.

    These turns are counted apart, half as many: a caller may hold a turn of its own while it waits for what it shares.
    """
    async with _held(Turn(_limiter_of_reads(asyncio.get_running_loop()))):
        yield


@asynccontextmanager
async def _held(turn: Turn) -> AsyncIterator[None]:
    await turn.take()
    try:
        yield
    finally:
        turn.give_back()


TurnDep = Annotated[Turn, Depends(get_turn, scope="function")]


async def take_turn(request: Request, turn: TurnDep) -> None:
    """Takes the request's turn once its body has come in whole."""
    await request.body()
    await turn.take()


TurnTaken = Annotated[None, Depends(take_turn, scope="function")]
