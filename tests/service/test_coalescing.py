"""A crowd that asks the same is answered by one read, and never by one from before it asked."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.coalescing import Coalesced

PATIENCE_SECONDS = 30


class Source:
    """A value that a read waits for: `began` counts reads, `let_go` ends one."""

    def __init__(self) -> None:
        self.began, self.value = 0, "first"
        self._gate = threading.Semaphore(0)

    def read(self, _key: str) -> str:
        self.began += 1
        value = self.value
        assert self._gate.acquire(timeout=PATIENCE_SECONDS)
        return value

    def let_go(self, count: int = 1) -> None:
        self._gate.release(count)

    async def until_began(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.began < count:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)


def test_who_asks_while_a_read_runs_gets_the_next_one():
    async def story() -> None:
        source = Source()
        coalesced = Coalesced(source.read)
        early = asyncio.create_task(coalesced.get("key"))
        await source.until_began(1)
        source.value = "second"
        late = [asyncio.create_task(coalesced.get("key")) for _ in range(5)]
        await asyncio.sleep(0)
        source.let_go(2)
        assert await early == "first"
        assert await asyncio.gather(*late) == ["second"] * 5
        assert source.began == 2

    asyncio.run(story())


def test_who_asks_while_the_read_waits_for_its_turn_shares_it():
    async def story() -> None:
        source, free = Source(), asyncio.Event()
        source.let_go(2)

        @asynccontextmanager
        async def turn() -> AsyncIterator[None]:
            await free.wait()
            yield

        coalesced = Coalesced(source.read, within=turn)
        early = asyncio.create_task(coalesced.get("key"))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(coalesced.get("key"))
        await asyncio.sleep(0.05)
        free.set()
        assert await asyncio.gather(early, late) == ["first", "first"]
        assert source.began == 1

    asyncio.run(story())


def test_a_turn_that_is_refused_is_told_to_all_and_forgotten():
    async def story() -> None:
        turns = iter([False, True])

        @asynccontextmanager
        async def turn() -> AsyncIterator[None]:
            if not next(turns):
                raise TimeoutError
            yield

        coalesced = Coalesced(str.upper, within=turn)
        refused = await asyncio.gather(*(coalesced.get("key") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in refused] == [TimeoutError] * 3
        assert await coalesced.get("key") == "KEY"

    asyncio.run(story())


def test_other_keys_do_not_wait():
    async def story() -> None:
        source = Source()
        coalesced = Coalesced(source.read)
        asked = [asyncio.create_task(coalesced.get(key)) for key in ("one", "other")]
        await source.until_began(2)
        source.let_go(2)
        assert await asyncio.gather(*asked) == ["first", "first"]

    asyncio.run(story())


def test_who_goes_away_leaves_the_others_their_answer():
    async def story() -> None:
        source = Source()
        coalesced = Coalesced(source.read)
        gone, stays = (asyncio.create_task(coalesced.get("key")) for _ in range(2))
        await source.until_began(1)
        gone.cancel()
        source.let_go()
        assert await stays == "first"
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(story())


def test_a_failed_read_is_told_to_all_and_forgotten():
    async def story() -> None:
        answers = iter([KeyError("unknown"), "found"])

        def read(_key: str) -> str:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        coalesced = Coalesced(read)
        failed = await asyncio.gather(*(coalesced.get("key") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in failed] == [KeyError] * 3
        assert await coalesced.get("key") == "found"

    asyncio.run(story())
