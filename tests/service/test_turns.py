"""Turns: a crowd waits its turn, an upload that never ends keeps nobody waiting, and no wait is for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient

from service import turns
from service.app import create_app
from service.config import get_settings
from service.errors import Unavailable
from service.turns import Turn
from tests.scenes import World


def test_more_stalled_uploads_than_turns_keep_nobody_else_waiting(client: TestClient, world: World) -> None:
    world.model("m")
    world.ok(client.put("/v1/models/m/tasks/t"))
    answers = asyncio.run(_beside_stalled_uploads(client.headers["Authorization"]))
    assert [answer.status_code for answer in answers] == [200] * (get_settings().database_pool_size + 2)
    assert (
        world.get("/models/m/tasks/t")["counts"]["train"] + world.get("/models/m/tasks/t")["counts"]["eval"]
    )


async def _beside_stalled_uploads(key: str) -> list[httpx.Response]:
    """Opens uploads whose last byte does not come, lists the models meanwhile, lets the uploads end."""
    listed = asyncio.Event()

    async def body(number: int) -> AsyncIterator[bytes]:
        yield f'{{"text": "row {number}", '.encode()
        await listed.wait()
        yield b'"label": "a"}\n'

    transport = httpx.ASGITransport(create_app())
    headers = {"Authorization": key}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as caller:
        uploads = [
            asyncio.create_task(
                caller.post(
                    "/v1/models/m/tasks/t/examples",
                    content=body(number),
                    headers={"Content-Type": "application/x-ndjson"},
                )
            )
            for number in range(get_settings().database_pool_size + 1)
        ]
        await asyncio.sleep(0.5)
        async with asyncio.timeout(20):
            models = await caller.get("/v1/models")
        listed.set()
        return [models, *await asyncio.gather(*uploads)]


def test_a_turn_that_does_not_come_is_a_503_that_says_when_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    impatient = get_settings().model_copy(update={"turn_timeout_seconds": 0.05})
    monkeypatch.setattr(turns, "get_settings", lambda: impatient)

    async def two_for_one() -> None:
        limiter = anyio.CapacityLimiter(1)
        first, second = Turn(limiter), Turn(limiter)
        await first.take()
        with pytest.raises(Unavailable, match=r"1 requests were before this one for 0\.05 s") as refused:
            await second.take()
        assert (refused.value.code, refused.value.headers) == ("too_busy", {"Retry-After": "2"})
        second.give_back()  # it never had one
        first.give_back()
        await second.take()
        assert limiter.borrowed_tokens == 1

    asyncio.run(two_for_one())


def test_a_kept_report_is_answered_while_every_turn_is_taken(client: TestClient, world: World) -> None:
    world.model("m")
    key = client.headers["Authorization"]

    async def ask_for_the_matrix() -> httpx.Response:
        transport = httpx.ASGITransport(create_app())
        async with AsyncExitStack() as taken:
            for _ in range(get_settings().database_pool_size):
                await taken.enter_async_context(turns.in_turn())
            caller = await taken.enter_async_context(
                httpx.AsyncClient(transport=transport, base_url="http://test", headers={"Authorization": key})
            )
            async with asyncio.timeout(20):
                return await caller.get("/v1/models/m/reports/forgetting")

    assert asyncio.run(ask_for_the_matrix()).status_code == 200
