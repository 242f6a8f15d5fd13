"""One read for all who ask the same at once."""

import asyncio
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Coalesced(Generic[Key, Value]):
    """Answers callers who ask for the same key at once with one read, which began after each of them had asked.

    So nobody gets an answer older than their question, and nothing needs to be forgotten: whatever was committed
    before a caller asked is in what the caller gets. While a read runs, those who ask wait for the next one together.
    What the read returns is shared, and so is the exception where it raises one.
    """

    def __init__(
        self,
        read: Callable[[Key], Value],
        *,
        within: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        """`read` runs in a thread, within a context that may make it wait; who asks meanwhile joins it."""
        self._read, self._within = read, within
        # By loop as well: tests call one app from several.
        self._running: dict[tuple[asyncio.AbstractEventLoop, Key], asyncio.Task[Value]] = {}
        self._next: dict[tuple[asyncio.AbstractEventLoop, Key], asyncio.Task[Value]] = {}

    async def get(self, key: Key) -> Value:
        """Returns what `read(key)` returns now."""
        at = (asyncio.get_running_loop(), key)
        if at not in self._next:
            self._next[at] = asyncio.create_task(self._take_turn(at))
        # A caller who goes away leaves the others their answer.
        return await asyncio.shield(self._next[at])

    async def _take_turn(self, at: tuple[asyncio.AbstractEventLoop, Key]) -> Value:
        if at in self._running:
            await asyncio.wait([self._running[at]])
        try:
            async with self._within():
                self._running[at] = self._next.pop(at)  # whoever asks from here on needs a later read
                return await run_in_threadpool(self._read, at[1])
        finally:
            self._forget(at)

    def _forget(self, at: tuple[asyncio.AbstractEventLoop, Key]) -> None:
        this = asyncio.current_task()
        for tasks in (self._running, self._next):
            if tasks.get(at) is this:
                del tasks[at]
