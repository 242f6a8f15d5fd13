"""Reports over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.dependencies import Cursor, Limit, Page, PageDep, Reader, SessionDep, page_of
from service.reports import flip_exports, flips, queries, simulation
from service.reports.documents import Wanted, documents
from service.reports.schemas import (
    FlipPage,
    ForgettingReport,
    GateSimulation,
    GateSimulationRequest,
    Outcome,
    UpdateReport,
)
from service.schemas import NAME_PATTERN, ModelPath, VersionPath

router = APIRouter(tags=["Reports"])

TaskQuery = Annotated[
    str | None, Query(max_length=128, pattern=NAME_PATTERN, description="Only this task; default: all")
]


@router.get(
    "/models/{model}/versions/{version}/report",
    response_model=UpdateReport,
    summary="Read an update's forgetting report",
)
async def read_report(model: ModelPath, version: VersionPath, principal: Reader) -> Response:
    """Shows what the update gave and cost on every task, with the gate's verdict and its reasons in numbers."""
    return await _sent(Wanted(principal.tenant, "update", model, version))


def get_flip_query(
    against: Annotated[
        int | None, Query(ge=0, le=2**31, description="Version before; default: the parent")
    ] = None,
    task: TaskQuery = None,
    kind: Annotated[
        flips.Kind | None, Query(description="negative: right before, wrong now; default: both")
    ] = None,
    label: Annotated[
        str | None, Query(max_length=1024, description="Only examples with this expected label")
    ] = None,
    predicted: Annotated[
        str | None, Query(max_length=1024, description="Only what is answered with this label now")
    ] = None,
    min_confidence: Annotated[
        float, Query(ge=0, le=1, description="Least confidence of the answer now")
    ] = 0.0,
    min_flips: Annotated[
        int, Query(ge=0, le=2**31, description="Least number of flips, of both kinds, along the lineage")
    ] = 0,
    sort: Annotated[
        flips.Sort,
        Query(
            description="Most confident answers first, most often flipped first, or in the order of arrival"
        ),
    ] = "id",
) -> flips.FlipQuery:
    """Reads the filters and the order of a list of flips."""
    return flips.FlipQuery(
        against=against, task=task, kind=kind, label=label, predicted=predicted, min_confidence=min_confidence,
        min_flips=min_flips, sort=sort,
    )  # fmt: skip


@router.get(
    "/models/{model}/versions/{version}/flips",
    response_model=FlipPage,
    summary="Read the very examples that changed sides",
    responses={200: {"content": flip_exports.CONTENT}},
)
def read_flips(
    model: ModelPath,
    version: VersionPath,
    request: Request,
    response: Response,
    principal: Reader,
    session: SessionDep,
    query: Annotated[flips.FlipQuery, Depends(get_flip_query)],
    limit: Limit = 50,
    cursor: Cursor = None,
    format_: Annotated[
        flip_exports.Format | None,
        Query(alias="format", description="Goes before the header `Accept`; default: json"),
    ] = None,
) -> FlipPage | StreamingResponse:
    """Lists text, expected label, both versions' answers, and how often the example flipped along the lineage.

    As CSV or NDJSON (`format`, or `Accept: text/csv` or `application/x-ndjson`) the whole list is sent, whatever
    `limit` and `cursor`. Cells of a CSV that a spreadsheet would take for a formula begin with an apostrophe.
    """
    form = format_ or flip_exports.wanted_format(request.headers.getlist("accept"))
    if form == "json":
        response.headers["Vary"] = "Accept"
        return flips.list_flips(
            session, model=model, version=version, query=query, limit=limit, cursor=cursor
        )
    ledger = flips.read_ledger(session, model=model, version=version, query=query)
    return flip_exports.ExportResponse(ledger, tenant=principal.tenant, form=form)


@router.get(
    "/models/{model}/versions/{version}/outcomes", summary="Read what a version answered, example by example"
)
def read_outcomes(
    model: ModelPath,
    version: VersionPath,
    _principal: Reader,
    session: SessionDep,
    page: PageDep,
    task: TaskQuery = None,
) -> Page[Outcome]:
    """Lists every eval example the version was scored on, with its answer; scores and reports stand on these."""
    outcomes, cursor = queries.list_outcomes(session, model=model, version=version, task=task, page=page)
    return Page[Outcome](**page_of(outcomes, cursor))


@router.get(
    "/models/{model}/reports/forgetting",
    response_model=ForgettingReport,
    summary="Read the accuracy matrix of a lineage",
)
async def read_forgetting(
    model: ModelPath,
    principal: Reader,
    version: Annotated[
        int | None, Query(ge=0, le=2**31, description="End of the lineage; default: the champion")
    ] = None,
) -> Response:
    """Shows the score of every version of the lineage on every task, and what follows from it."""
    return await _sent(Wanted(principal.tenant, "forgetting", model, version))


@router.post("/models/{model}/gate:simulate", summary="Try another gate policy on past updates")
def simulate_gate(
    model: ModelPath, body: GateSimulationRequest, _principal: Reader, session: SessionDep
) -> GateSimulation:
    """Judges stored outcomes under another policy: what would have been promoted, held, rejected. Changes nothing."""
    return simulation.simulate_gate(session, model=model, request=body)


async def _sent(wanted: Wanted) -> Response:
    return Response(await documents.get(wanted), media_type="application/json")
