"""Imports over HTTP."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
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
from service.turns import TurnDep
from service.updates.queries import describe_update
from service.updates.schemas import UpdateRead

router = APIRouter(tags=["Versions"])

EXPECTED = Expected(
    media_types=(TAR,),
    wanted=f"Send the adapter's files as a tar, uncompressed, as {TAR}.",
    when_too_large="An adapter of that size needs a higher PALIMPSEST_MAX_BODY_BYTES.",
)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What is asked for and may be, and what the tar must be like."""

    query: ImportQuery
    rules: Rules


def _may_import(model: ModelPath, query: Annotated[ImportQuery, Query()], principal: Trainer) -> Allowed:
    # Asked before the body is taken in, in a transaction of its own: none is open while a socket waits.
    with session_scope(tenant=principal.tenant) as session:
        rules = commands.may_import(session, model=model, query=query, principal=principal)
    return Allowed(query, rules)


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
    request: Request,
    principal: Trainer,
    allowed: Annotated[Allowed, Depends(_may_import)],
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
    async with spooled_body(
        request, max_body_bytes=settings.max_body_bytes, directory=settings.spool_dir, expected=EXPECTED
    ) as body:
        upload = await run_in_threadpool(commands.store_upload, body.file, rules=allowed.rules)
    await turn.take()

    def store() -> Response:
        idempotency.begin(body.digest)
        update = commands.request_import(
            session, model=model, query=allowed.query, upload=upload, principal=principal
        )
        answer = describe_update(session, update=update)
        return idempotency.keep(202, answer, headers={"Location": f"/v1/updates/{update.id}"})

    return await run_in_threadpool(store)
