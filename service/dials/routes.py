"""The stability-plasticity dial over HTTP.

A dial is one thing of its version, under one address. GET only reads: it costs nothing, may be cached or repeated, and
needs no more than the scope `read`. POST has it made, which takes a worker's time and so the scope `train`; it may be
repeated, and adds points.
"""

from fastapi import APIRouter, Response

from service.dependencies import Reader, SessionDep, Trainer
from service.dials import commands, queries
from service.dials.schemas import DialRead, DialRequest
from service.errors import problem_responses
from service.idempotency import IdempotencyDep
from service.models import DialState
from service.registry.queries import get_model, get_version
from service.schemas import ModelPath, VersionPath

router = APIRouter(tags=["Reports"])


@router.get("/models/{model}/versions/{version}/dial", summary="Read the stability-plasticity dial")
def read_dial(model: ModelPath, version: VersionPath, _principal: Reader, session: SessionDep) -> DialRead:
    """Shows how ΔW(β) = (1 − β)·parent + β·version scores on every task, from the parent (0) to the version (1).

    404 with `dial_not_found` until it was asked for by POST; then `status` tells how far it is.
    """
    return queries.read_dial(session, model=model, version=version)


@router.post(
    "/models/{model}/versions/{version}/dial",
    status_code=202,
    response_model=DialRead,
    summary="Have the stability-plasticity dial scored",
    responses={
        200: {"model": DialRead, "description": "All points are there"},
        **problem_responses(410, 429),
    },
)
def request_dial(
    model: ModelPath,
    version: VersionPath,
    principal: Trainer,
    session: SessionDep,
    idempotency: IdempotencyDep,
    body: DialRequest | None = None,
) -> Response:
    """Queues the scoring of the points that are missing, and answers 202 with where to read; 200 where none is.

    Nothing is trained: a worker adds parent and version up at every β and scores the sum on the eval sets that the version
    was scored on. A dial that failed is taken up again.
    """
    dial = commands.request_dial(
        session, model=model, version=version, request=body or DialRequest(), principal=principal
    )
    row = get_model(session, model=model)
    found = get_version(session, model=row, version=version)
    answer = queries.describe_dial(session, model=row, version=found, dial=dial)
    status = 200 if dial.state == DialState.DONE else 202
    return idempotency.keep(
        status, answer, headers={"Location": f"/v1/models/{row.name}/versions/{version}/dial"}
    )
