"""Writes of forecasts: requests, probes, answers."""

from collections.abc import Mapping

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.config import get_settings
from service.errors import Conflict, TooManyRequests, Unprocessable
from service.forecasts.leases import FORECASTS
from service.forecasts.probes import Probe
from service.forecasts.queries import answer, find_past, get_forecast
from service.forecasts.schemas import ForecastCreate
from service.leased_rows import RowClaim
from service.models import Forecast, ForecastProbe, LeasedState, Model, new_id
from service.queue import nudge_after_commit
from service.registry.queries import get_model
from service.security import Principal
from service.updates.catalogue import strategies
from service.updates.commands import draft_update


def request_forecast(
    session: Session, *, model: str, request: ForecastCreate, principal: Principal
) -> Forecast:
    """Stores a request to forecast an update, with the cut and the parent it would have now, and nudges the workers.

    Raises what a request for the update raises; `Unprocessable` for a strategy whose first steps tell nothing, and
    `TooManyRequests` past the tenant's queue limit.
    """
    row = get_model(session, model=model, for_change=True, hold=True)
    _check_queue(session, tenant=row.tenant_id)
    update, parent = draft_update(session, model=row, request=request, principal=principal)
    _require_probes(update.strategy)
    forecast = Forecast(
        tenant_id=row.tenant_id, id=new_id("fct"), model_id=row.id, task_ids=update.task_ids, strategy=update.strategy,
        parameters=update.parameters, training=update.training, replay=update.replay, relearn=update.relearn,
        parent_version=parent.number, cut=update.cut, share=request.probe_fraction, level=request.level, gate=row.gate,
        warnings=update.warnings, requested_by=update.requested_by, request_id=update.request_id, state=LeasedState.QUEUED,
        max_attempts=update.max_attempts,
    )  # fmt: skip
    session.add(forecast)
    session.flush()
    session.refresh(forecast)
    nudge_after_commit(session)
    return forecast


def _require_probes(name: str) -> None:
    if strategies()[name].probes:
        return
    able = ", ".join(sorted(info.name for info in strategies().values() if info.probes))
    raise Unprocessable(
        f"The first steps of '{name}' tell nothing of its end, so that it cannot be forecast. These can: {able}.",
        code="strategy_not_forecast", param="strategy.name",
    )  # fmt: skip


def _check_queue(session: Session, *, tenant: str) -> None:
    limit = get_settings().max_queued_updates_per_tenant
    mine = (Forecast.tenant_id == tenant, Forecast.state == LeasedState.QUEUED)
    queued = session.scalar(select(func.count()).select_from(Forecast).where(*mine)) or 0
    if queued >= limit:
        raise TooManyRequests(
            f"{queued} forecasts are queued already, the limit is {limit}; wait for some to finish or cancel them.",
            code="too_many_queued_forecasts", headers={"Retry-After": "30"},
        )  # fmt: skip


def cancel_forecast(session: Session, *, forecast_id: str) -> Forecast:
    """Cancels a forecast at once, also from under a worker, which hears of it when it next renews its lease and stops.

    That one's claim is lost with the state, so that it can write nothing more. Cancelling again changes nothing. Raises
    `NotFound`, and `Conflict` for a forecast that is done or has failed.
    """
    forecast = get_forecast(session, forecast_id=forecast_id, lock=True)
    if forecast.state in (LeasedState.DONE, LeasedState.FAILED):
        raise Conflict(
            f"The forecast is {forecast.state} and can no longer be cancelled.", code="forecast_finished"
        )
    if forecast.state != LeasedState.CANCELLED:
        forecast.state, forecast.finished_at = LeasedState.CANCELLED, session.scalar(select(func.now()))
        forecast.worker, forecast.lease_expires_at, forecast.next_attempt_at = None, None, None
        session.flush()
    return forecast


def keep_probe(session: Session, *, forecast: Forecast, update_id: str, probe: Probe) -> None:
    """Stores the probe of a past update for this forecast and later ones; a second record of the same changes nothing."""
    values = {
        "tenant_id": forecast.tenant_id,
        "update_id": update_id,
        "share": forecast.share,
        "probe": probe.to_json(),
    }
    session.execute(insert(ForecastProbe).values(values).on_conflict_do_nothing())


def finish_forecast(session: Session, *, claim: RowClaim, skipped: Mapping[str, str]) -> bool:
    """Answers a forecast whose probes are all there; False when the claim is lost.

    `skipped` tells of the past updates that could not be probed, and why.
    """
    forecast = FORECASTS.hold(session, claim=claim)
    if forecast is None:
        return False
    model = session.get_one(Model, {"tenant_id": forecast.tenant_id, "id": forecast.model_id})
    past = find_past(session, model=model, forecast=forecast)
    result = answer(session, model=model, forecast=forecast, past=past, skipped=skipped)
    return FORECASTS.finish(session, claim=claim, result=result.model_dump(), progress=None)
