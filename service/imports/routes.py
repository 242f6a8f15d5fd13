"""Imports over HTTP."""

import asyncio
from functools import lru_cache, partial
from io import SEEK_END
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from service.config import get_settings
from service.db import session_scope
from service.dependencies import LaterSessionDep, Trainer
from service.errors import problem_responses
from service.examples.spool import Expected, spooled_body
from service.idempotency import StreamIdempotencyDep
from service.imports import commands
from service.imports.checks import Rules
from service.imports.schemas import IMPORT_BODY, TAR, ImportQuery
from service.schemas import ModelPath
from service.turns import TurnDep, in_turn
from service.updates.queries import describe_update
from service.updates.schemas import UpdateRead

router = APIRouter(tags=["Versions"])

EXPECTED = Expected(
    media_types=(TAR,),
    wanted=f"Send the adapter's files as a tar, uncompressed, as {TAR}.",
    when_too_large="An adapter of that size needs a higher PALIMPSEST_MAX_BODY_BYTES.",
)


@lru_cache
def _checkers(_loop: asyncio.AbstractEventLoop) -> CapacityLimiter:
    """Threads apart from those of other requests: checking and storing gigabytes holds up nobody else."""
    return CapacityLimiter(4)


@router.post(
    "/models/{model}/versions:import",
    status_code=202,
    response_model=UpdateRead,
    summary="Import an adapter as a version",
    openapi_extra={"requestBody": IMPORT_BODY},
    responses=problem_responses(409, 415, 429),
)
async def import_version(
    model: ModelPath,
    query: Annotated[ImportQuery, Query()],
    request: Request,
    principal: Trainer,
    session: LaterSessionDep,
    turn: TurnDep,
    idempotency: StreamIdempotencyDep,
) -> Response:
    """Queues an update that trains nothing: its version is the adapter in the body, scored and judged as any other.

    The tar is checked here as far as that goes without the base model; a worker checks the rest and fails the update, with an
    `error.code`, where the adapter does not fit. The gate compares the version with the champion on every task that either
    has learnt. Scores are honest only where the adapter was not trained on the tasks' eval examples: nobody but you knows.
    """
    settings = get_settings()
    asked = partial(commands.may_import, model=model, query=query, principal=principal)

    # In transactions of their own: none is open while a socket waits or the store is written.
    def ask_before(size: int) -> None:
        with session_scope(tenant=principal.tenant) as shortly:
            repeated = idempotency.within(shortly).is_known()
            if not repeated:  # a repeat is answered once its body is known as well
                asked(shortly, size=size)

    def ask_again(size: int, digest: bytes) -> Rules:
        with session_scope(tenant=principal.tenant) as shortly:
            idempotency.within(shortly).begin(digest)
            return asked(shortly, size=size)

    announced = request.headers.get("content-length", "")
    async with in_turn():
        await run_in_threadpool(ask_before, int(announced) if announced.isdecimal() else 0)
    async with spooled_body(
        request, max_body_bytes=settings.max_body_bytes, directory=settings.spool_dir, expected=EXPECTED
    ) as body:
        size = await run_in_threadpool(body.file.seek, 0, SEEK_END)
        async with in_turn():
            rules = await run_in_threadpool(ask_again, size, body.digest)
        limiter = _checkers(asyncio.get_running_loop())
        upload = await to_thread.run_sync(
            partial(commands.store_upload, body.file, rules=rules), limiter=limiter
        )
    await turn.take()

    def store() -> Response:
        idempotency.begin(body.digest)
        update = commands.request_import(
            session, model=model, query=query, upload=upload, principal=principal
        )
        answer = describe_update(session, update=update)
        return idempotency.keep(202, answer, headers={"Location": f"/v1/updates/{update.id}"})

    return await run_in_threadpool(store)
