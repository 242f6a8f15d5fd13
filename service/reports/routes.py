"""Reports over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.dependencies import Page, PageDep, Reader, SessionDep, page_of
from service.reports import queries, simulation
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
from service.turns import TurnTaken

router = APIRouter(tags=["Reports"])

TaskQuery = Annotated[
    str | None, Query(max_length=128, pattern=NAME_PATTERN, description="Only this task; default: all")
]


@router.get(
    "/models/{model}/versions/{version}/report",
    response_model=UpdateReport,
    summary="Read an update's forgetting report",
)
async def read_report(
    model: ModelPath, version: VersionPath, principal: Reader, _taken: TurnTaken
) -> Response:
    """Shows what the update gave and cost on every task, with the gate's verdict and its reasons in numbers."""
    return await _sent(Wanted(principal.tenant, "update", model, version))


@router.get("/models/{model}/versions/{version}/flips", summary="Read the very examples that changed sides")
def read_flips(
    model: ModelPath,
    version: VersionPath,
    _principal: Reader,
    session: SessionDep,
    page: PageDep,
    task: TaskQuery = None,
    kind: Annotated[
        queries.Kind | None, Query(description="negative: right before, wrong now; default: both")
    ] = None,
    against: Annotated[
        int | None, Query(ge=0, le=2**31, description="Version before; default: the parent")
    ] = None,
) -> FlipPage:
    """Lists text, expected label, and both versions' answers."""
    return queries.list_flips(
        session, model=model, version=version, against=against, task=task, kind=kind, page=page
    )


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
    _taken: TurnTaken,
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
