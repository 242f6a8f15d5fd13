"""Liveness and readiness."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import psycopg
from fastapi import APIRouter, Response
from pydantic import BaseModel
from redis.asyncio import Redis

from service.artifacts import get_store
from service.config import get_settings
from service.errors import ServiceError, Unavailable
from service.migrate import revisions

router = APIRouter(tags=["Health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """What the service stands on, and whether each part answers."""

    status: Literal["ready", "unavailable"]
    checks: dict[str, str]


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Alive:
    """Answers as long as the process can; looks at nothing else."""
    # A coroutine: the threads that requests run in may all be waiting for a database that hangs.
    return Alive()


@router.get(
    "/readyz",
    summary="Can requests be served?",
    responses={
        503: {"model": Readiness, "description": "A part does not answer; `checks` says which and why"}
    },
)
async def readyz(response: Response) -> Readiness:
    """Checks Postgres, Redis and the artifact store, each within its own time limit."""
    parts: dict[str, Callable[[], Awaitable[None]]] = {
        "postgres": _check_postgres,
        "redis": _check_redis,
        "artifacts": _check_artifacts,
    }
    results = await asyncio.gather(*(_outcome(check) for check in parts.values()))
    checks = dict(zip(parts, results, strict=True))
    ready = all(result == "ok" for result in results)
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "unavailable", checks=checks)


async def _outcome(check: Callable[[], Awaitable[None]]) -> str:
    limit = get_settings().ready_timeout_seconds
    task = asyncio.ensure_future(check())
    done, _ = await asyncio.wait({task}, timeout=limit)
    if not done:
        task.cancel()  # and not waited for: psycopg first asks the hung server to cancel the query
        return f"no answer within {limit:g} s"
    error = task.exception()
    if isinstance(error, ServiceError):
        return error.detail
    return (
        type(error).__name__ if error else "ok"
    )  # any failure means "not ready"; the cause belongs in the answer


async def _check_postgres() -> None:
    # A connection of its own: a hung server would hang the pool's.
    url = get_settings().database_url.replace("postgresql+psycopg://", "postgresql://")
    async with await psycopg.AsyncConnection.connect(url, connect_timeout=2) as connection:
        row = await (await connection.execute("SELECT version_num FROM alembic_version")).fetchone()
    known = revisions()
    # One that this release does not know is newer, and made to suit the code that still runs (decision 9).
    if row is None or row[0] in known[:-1]:
        raise Unavailable(
            f"the schema is at revision {row and row[0]}, this release needs {known[-1]}: run 'palimpsest migrate'"
        )


async def _check_redis() -> None:
    timeout = get_settings().ready_timeout_seconds
    async with Redis.from_url(
        get_settings().redis_url, socket_timeout=timeout, socket_connect_timeout=timeout
    ) as redis:
        await redis.ping()


class _StoreCheck:
    """The check of the store that is under way, which all who ask meanwhile await: one that hangs holds one thread."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._task = asyncio.create_task(asyncio.to_thread(get_store().check))
            task.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # nobody may be left to hear it
        await asyncio.shield(task)


_check_artifacts = _StoreCheck()
