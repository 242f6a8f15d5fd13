"""Forecasts over HTTP: what an update would forget, before it is trained."""

from fastapi import APIRouter, Response
from sqlalchemy import select

from service.dependencies import Page, PageDep, Reader, SessionDep, Trainer, page_of
from service.errors import problem_responses
from service.forecasts import commands, queries
from service.forecasts.schemas import ForecastCreate, ForecastRead
from service.idempotency import IdempotencyDep
from service.models import Forecast
from service.registry.queries import get_model, task_names
from service.schemas import ForecastPath, ModelPath

router = APIRouter(tags=["Updates"])


@router.post(
    "/models/{model}/updates:forecast",
    status_code=202,
    response_model=ForecastRead,
    summary="Forecast what an update would forget",
    responses=problem_responses(429),
)
def request_forecast(
    model: ModelPath,
    body: ForecastCreate,
    principal: Trainer,
    session: SessionDep,
    idempotency: IdempotencyDep,
) -> Response:
    """Queues a forecast of the update that this body would ask for. `Location` is where to read it.

    A worker takes the first few percent of the update's steps, asks parent and probe about every task learnt before, and holds
    what it sees against what the model's past updates came to. Nothing is registered and no alias moves. The data cut and the parent are
    those of now.
    """
    forecast = commands.request_forecast(session, model=model, request=body, principal=principal)
    answer = queries.describe_forecast(session, forecast=forecast)
    return idempotency.keep(202, answer, headers={"Location": f"/v1/forecasts/{forecast.id}"})


@router.get("/models/{model}/forecasts", summary="List a model's forecasts")
def list_forecasts(
    model: ModelPath, _principal: Reader, session: SessionDep, page: PageDep
) -> Page[ForecastRead]:
    """Lists the model's forecasts, newest first."""
    row = get_model(session, model=model)
    statement = select(Forecast).where(Forecast.model_id == row.id)
    forecasts, cursor = page.select(session, statement, key=Forecast.seq, newest_first=True)
    names = task_names(session, model=row)
    read = [queries.forecast_read(forecast, model=row, names=names) for forecast in forecasts]
    return Page[ForecastRead](**page_of(read, cursor))


@router.get("/forecasts/{forecast}", summary="Read a forecast")
def read_forecast(forecast: ForecastPath, _principal: Reader, session: SessionDep) -> ForecastRead:
    """Shows how far the forecast is and, once it is done, what the update would do to every task learnt before."""
    return queries.describe_forecast(session, forecast=queries.get_forecast(session, forecast_id=forecast))


@router.post("/forecasts/{forecast}/cancel", summary="Cancel a forecast")
def cancel_forecast(forecast: ForecastPath, _principal: Trainer, session: SessionDep) -> ForecastRead:
    """Cancels a forecast that is not finished, at once; a worker that is at it stops within seconds. Cancelling again changes nothing."""
    row = commands.cancel_forecast(session, forecast_id=forecast)
    return queries.describe_forecast(session, forecast=row)
