"""Updates and strategies over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.dependencies import (
    Credentials,
    Deployer,
    Page,
    PageDep,
    PageRequest,
    Reader,
    SessionDep,
    Trainer,
    page_of,
)
from service.errors import problem_responses
from service.idempotency import IdempotencyDep
from service.models import Update, UpdateEvent, UpdateState
from service.registry.queries import get_model, task_names
from service.schemas import NAME_PATTERN, ModelPath, UpdatePath, VersionPath
from service.updates import blends, commands, queries
from service.updates.catalogue import offered_strategies, require_strategy
from service.updates.event_stream import EVENT_STREAM_RESPONSES, EventStream, LastEventId, wants_stream
from service.updates.schemas import (
    BlendCreate,
    Decision,
    EventRead,
    StrategyInfo,
    StrategyList,
    UpdateCreate,
    UpdateRead,
)

router = APIRouter(tags=["Updates"])

StrategyPath = Annotated[str, Path(max_length=64, pattern=NAME_PATTERN)]


@router.get("/strategies", summary="List the continual-learning strategies")
def list_strategies(_principal: Reader) -> StrategyList:
    """Lists every strategy that an update may name, with a summary, what it can take, and the JSON schema of its parameters."""
    return StrategyList(data=offered_strategies())


@router.get("/strategies/{strategy}", summary="Read one strategy")
def read_strategy(strategy: StrategyPath, _principal: Reader) -> StrategyInfo:
    """Shows one strategy of the catalogue."""
    return require_strategy(strategy)


@router.post(
    "/models/{model}/updates",
    status_code=202,
    response_model=UpdateRead,
    summary="Request an update",
    responses=problem_responses(429),
)
def request_update(
    model: ModelPath, body: UpdateCreate, principal: Trainer, session: SessionDep, idempotency: IdempotencyDep
) -> Response:
    """Queues an update that learns the tasks' new rows. `Location` is where to watch it.

    The data cut is pinned now: rows that arrive later wait for the next update. Updates of one model run one
    after the other, in the order they were requested.
    """
    update = commands.request_update(session, model=model, request=body, principal=principal)
    answer = queries.describe_update(session, update=update)
    return idempotency.keep(202, answer, headers={"Location": f"/v1/updates/{update.id}"})


@router.post(
    "/models/{model}/versions/{version}/blend",
    status_code=202,
    response_model=UpdateRead,
    summary="Register a point between a version and its parent as a version",
    responses=problem_responses(410, 429),
)
def request_blend(
    model: ModelPath,
    version: VersionPath,
    body: BlendCreate,
    principal: Trainer,
    session: SessionDep,
    idempotency: IdempotencyDep,
) -> Response:
    """Queues an update that trains nothing: its version is (1 − β)·parent + β·version, judged by the same gate.

    It has the version's parent as its parent, and counts as having learnt what the version learnt. Where the champion is
    not that parent, as after the version itself was promoted, a person decides on the blend.
    """
    update = blends.request_blend(session, model=model, version=version, request=body, principal=principal)
    answer = queries.describe_update(session, update=update)
    return idempotency.keep(202, answer, headers={"Location": f"/v1/updates/{update.id}"})


@router.get("/models/{model}/updates", summary="List a model's updates")
def list_updates(
    model: ModelPath,
    _principal: Reader,
    session: SessionDep,
    page: PageDep,
    status: Annotated[UpdateState | None, Query(description="Only updates in this state")] = None,
) -> Page[UpdateRead]:
    """Lists the model's updates, newest first."""
    row = get_model(session, model=model)
    statement = select(Update).where(Update.model_id == row.id)
    if status is not None:
        statement = statement.where(Update.state == status)
    updates, cursor = page.select(session, statement, key=Update.seq, newest_first=True)
    names = task_names(session, model=row)
    return Page[UpdateRead](
        **page_of([queries.update_read(u, model=row, names=names) for u in updates], cursor)
    )


@router.get("/updates/{update}", summary="Read an update")
def read_update(update: UpdatePath, _principal: Reader, session: SessionDep) -> UpdateRead:
    """Shows state, progress, error, verdict and the version it yielded."""
    return queries.describe_update(session, update=queries.get_update(session, update_id=update))


@router.get(
    "/updates/{update}/events",
    summary="Read an update's events, or listen to them",
    response_model=Page[EventRead],
    responses=EVENT_STREAM_RESPONSES,
)
async def list_events(
    update: UpdatePath,
    principal: Reader,
    credentials: Credentials,
    session: SessionDep,
    page: PageDep,
    request: Request,
    response: Response,
    last_event_id: LastEventId = None,
) -> Page[EventRead] | Response:
    """Lists every change of the update's state, oldest first.

    With `Accept: text/event-stream` the answer is a stream of server-sent events instead: those that were and those to come
    (`id`, `event` = type, `data` = the event as in the list), `progress` of the active update in between (no `id`, at most
    one a second), and its end after the event that ends the update. After a break, `Last-Event-ID` resumes it.
    """
    response.headers["Vary"] = "Accept"
    row = await run_in_threadpool(queries.get_update, session, update_id=update)
    if not wants_stream(request):
        return await run_in_threadpool(_page_of_events, session, update=row, page=page)
    if last_event_id is not None and await run_in_threadpool(
        queries.has_ended, session, update=row, after=last_event_id
    ):
        return Response(status_code=204, headers={"Vary": "Accept"})  # which tells clients to come no more
    return EventStream((principal.tenant, row.id), api_key=credentials.credentials, after=last_event_id or 0)


def _page_of_events(session: Session, *, update: Update, page: PageRequest) -> Page[EventRead]:
    statement = select(UpdateEvent).where(UpdateEvent.update_id == update.id)
    events, cursor = page.select(session, statement, key=UpdateEvent.id)
    read = [EventRead(id=event.id, type=event.type, data=event.data, at=event.at) for event in events]
    return Page[EventRead](**page_of(read, cursor))


@router.post("/updates/{update}/cancel", summary="Cancel an update")
def cancel_update(update: UpdatePath, principal: Trainer, session: SessionDep) -> UpdateRead:
    """Cancels an unfinished update: at once where no worker holds it, else at the worker's next step."""
    row = commands.cancel_update(session, update_id=update, actor=principal.actor)
    return queries.describe_update(session, update=row)


@router.post("/updates/{update}/approve", summary="Approve a held candidate")
def approve_update(
    update: UpdatePath, principal: Deployer, session: SessionDep, body: Decision | None = None
) -> UpdateRead:
    """Promotes a candidate that is `awaiting_approval` to champion."""
    reason = body.reason if body else None
    row = commands.approve_update(session, update_id=update, actor=principal.actor, reason=reason)
    return queries.describe_update(session, update=row)


@router.post("/updates/{update}/reject", summary="Reject a held candidate")
def reject_update(
    update: UpdatePath, principal: Deployer, session: SessionDep, body: Decision | None = None
) -> UpdateRead:
    """Keeps a candidate that is `awaiting_approval` from becoming champion; the version stays readable."""
    reason = body.reason if body else None
    row = commands.reject_update(session, update_id=update, actor=principal.actor, reason=reason)
    return queries.describe_update(session, update=row)
