"""Reads of forecasts: the model's past that they are held against, and what they answer."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import among
from service.errors import NotFound
from service.evaluations.gate import GatePolicy
from service.evaluations.outcomes import pair
from service.evaluations.queries import load_outcomes
from service.examples.queries import eval_sizes
from service.forecasts.estimating import Estimate, Past, estimate, outlook, updates_needed
from service.forecasts.probes import Probe, TaskProbe
from service.forecasts.schemas import (
    ForecastCosts,
    ForecastRead,
    ForecastResult,
    ForecastSigns,
    ForecastTask,
    PastUpdate,
    SkippedUpdate,
)
from service.models import Forecast, ForecastProbe, LeasedState, Model, Task, Update, Version
from service.registry.queries import get_version, task_names
from service.updates.catalogue import strategies

MOST_PAST_UPDATES = 12
"""Each costs a probe, once; intervals at the highest level take nine."""


def get_forecast(session: Session, *, forecast_id: str, lock: bool = False) -> Forecast:
    """Returns the tenant's forecast of that id, its row locked to the transaction's end if wanted. Raises `NotFound`."""
    statement = select(Forecast).where(Forecast.id == forecast_id)
    if lock:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(statement)
    if row is None:
        raise NotFound(f"No forecast '{forecast_id}'.", code="forecast_not_found", param="forecast")
    return row


def as_update(forecast: Forecast) -> Update:
    """Returns the update that is forecast, unsaved: what prepares an update takes it for one."""
    return Update(
        tenant_id=forecast.tenant_id, id=forecast.id, model_id=forecast.model_id, task_ids=forecast.task_ids,
        strategy=forecast.strategy, parameters=forecast.parameters, training=forecast.training, replay=forecast.replay,
        parent=str(forecast.parent_version), parent_version=forecast.parent_version, relearn=forecast.relearn,
        cut=forecast.cut,
    )  # fmt: skip


def find_past(session: Session, *, model: Model, forecast: Forecast) -> list[Update]:
    """Returns the past updates that a forecast is held against: `MOST_PAST_UPDATES` that yielded a version from its
    parent's lineage before it was asked for, those of its own strategy first, then the newest. Verdicts do not matter, scores do.

    What ended later is left out: it may be the very update that is forecast.
    """
    lineage = get_version(session, model=model, version=forecast.parent_version).lineage
    if not model.is_graded:
        lineage = [version for version in lineage if version > 0]  # from the base there was nothing to forget
    probed = [name for name, info in strategies().items() if info.probes]
    return list(
        session.scalars(
            select(Update)
            .join(Version, (Version.model_id == Update.model_id) & (Version.number == Update.version))
            .where(
                Update.model_id == model.id,
                Version.created_at < forecast.requested_at,
                among(Update.parent_version, lineage),
                among(Update.strategy, probed),
            )
            .order_by((Update.strategy == forecast.strategy).desc(), Update.seq.desc())
            .limit(MOST_PAST_UPDATES)
        )
    )


def stored_probes(session: Session, *, updates: Iterable[Update], share: float) -> dict[str, Probe]:
    """Returns the probes that past updates have, by update id."""
    rows = session.execute(
        select(ForecastProbe.update_id, ForecastProbe.probe).where(
            among(ForecastProbe.update_id, [update.id for update in updates]), ForecastProbe.share == share
        )
    )
    return {update_id: Probe.from_json(probe) for update_id, probe in rows}


def changes_of(
    session: Session, *, model: Model, update: Update, task_ids: Sequence[str]
) -> dict[str, float]:
    """Returns what a past update changed of the mean score of these tasks, by id, on the examples scored before and after."""
    after, before = update.version or 0, update.parent_version or 0
    outcomes = load_outcomes(session, model=model, versions={after, before}, task_ids=task_ids)
    changes = {}
    for task_id in task_ids:
        sides = outcomes.get((before, task_id)), outcomes.get((after, task_id))
        if sides[0] is None or sides[1] is None:
            continue
        both = pair(sides[0], sides[1])
        if len(both):
            was, became = both.scores()
            changes[task_id] = became - was
    return changes


def answer(
    session: Session,
    *,
    model: Model,
    forecast: Forecast,
    past: Sequence[Update],
    skipped: Mapping[str, str],
) -> ForecastResult:
    """Returns what a forecast says, from its own probe and those of the past updates."""
    probe = Probe.from_json(forecast.probe or {})
    probes = stored_probes(session, updates=past, share=forecast.share)
    lessons: list[tuple[TaskProbe, Past]] = []
    shown = []
    for update in past:
        if update.id not in probes:
            continue
        found = probes[update.id].tasks
        changes = changes_of(session, model=model, update=update, task_ids=list(found))
        lessons += [
            (found[task], Past(update.id, found[task].signs, change)) for task, change in changes.items()
        ]
        if changes:
            shown.append(
                PastUpdate(
                    update=update.id,
                    version=update.version or 0,
                    strategy=update.strategy,
                    mean_change=fmean(changes.values()),
                )
            )
    tasks = _tasks(session, model=model, forecast=forecast, probe=probe, lessons=lessons)
    return ForecastResult(
        summary=_summary(tasks, level=forecast.level),
        calibrated=all(task.calibrated for task in tasks),
        tasks=tasks,
        past=shown,
        skipped=[SkippedUpdate(update=update, reason=reason) for update, reason in skipped.items()],
        costs=costs_of(probe, training=forecast.training),
    )


def _tasks(
    session: Session,
    *,
    model: Model,
    forecast: Forecast,
    probe: Probe,
    lessons: Sequence[tuple[TaskProbe, Past]],
) -> list[ForecastTask]:
    names = {
        task.id: task.name
        for task in session.scalars(
            select(Task).where(among(Task.id, list(probe.tasks)), Task.deleted_at.is_(None))
        )
    }
    sizes = eval_sizes(session, task_ids=list(names), cut=forecast.cut)
    told = []
    for task_id, name in sorted(names.items(), key=lambda item: item[1]):
        found = probe.tasks[task_id]
        like = [past for other, past in lessons if other.role == found.role]
        estimated = estimate(found.signs, like, level=forecast.level, graded=model.is_graded)
        told.append(
            _task(
                name,
                found,
                estimated,
                size=sizes[task_id],
                policy=GatePolicy(**forecast.gate),
                graded=model.is_graded,
            )
        )
    return told


def _task(
    name: str, found: TaskProbe, estimated: Estimate, *, size: int, policy: GatePolicy, graded: bool
) -> ForecastTask:
    signs, interval = found.signs, estimated.interval
    return ForecastTask(
        task=name, role=found.role, eval_size=size, probed_rows=found.rows, parent_score=signs.parent_score,
        predicted_score=signs.parent_score + estimated.change, predicted_change=estimated.change,
        forgetting=-estimated.change, interval=None if interval is None else list(interval),
        calibrated=interval is not None, past_updates=estimated.updates,
        gate=outlook(policy, estimated, size=size, graded=graded),
        signs=ForecastSigns.model_validate(signs, from_attributes=True),
    )  # fmt: skip


def _summary(tasks: Sequence[ForecastTask], *, level: float) -> str:
    if not tasks:
        return "Nothing that was learnt before could be forgotten."
    needed = updates_needed(level)
    worst = max(tasks, key=lambda task: task.forgetting)
    told = f"The most is forecast to be lost on '{worst.task}': {worst.predicted_change:+.3f}."
    if worst.forgetting <= 0.0:
        told = "No task is forecast to lose anything."
    past = min((task.past_updates for task in tasks if not task.calibrated), default=None)
    if past is None:
        fewest = min(task.past_updates for task in tasks)
        return f"{told} The intervals are calibrated on {fewest} past updates at least and should hold {level:.0%} of the time."
    some = "Some tasks have" if any(task.calibrated for task in tasks) else "There is"
    return (
        f"{told} {some} no interval: {past} past updates with such tasks could be probed, and {needed} are needed at "
        f"{level:.0%}. Take the numbers for what the first steps show, no more."
    )


def costs_of(probe: Probe, *, training: Mapping[str, Any]) -> ForecastCosts:
    """Returns what a probe cost and what the update would: all its trainings, where it repeats with further seeds."""
    trainings = int(training.get("repeats", 1))
    return ForecastCosts(
        fresh_rows=probe.fresh_rows, replay_rows=probe.replay_rows, probe_steps=probe.steps, total_steps=probe.total_steps,
        probe_seconds=probe.seconds, training_seconds=probe.seconds_of(trainings),
    )  # fmt: skip


def describe_forecast(session: Session, *, forecast: Forecast) -> ForecastRead:
    """Returns a forecast in its public shape."""
    model = session.get_one(Model, {"tenant_id": forecast.tenant_id, "id": forecast.model_id})
    return forecast_read(forecast, model=model, names=task_names(session, model=model))


def forecast_read(forecast: Forecast, *, model: Model, names: Mapping[str, str]) -> ForecastRead:
    """Returns a forecast in its public shape, given the names of its model's tasks."""
    return ForecastRead.model_validate(
        {
            **{name: getattr(forecast, name) for name in (
                "id", "training", "replay", "relearn", "parent_version", "level", "gate", "warnings", "max_attempts", "error",
                "requested_by", "request_id", "requested_at", "finished_at")},
            "model": model.name,
            "status": forecast.state,
            "tasks": [names.get(task_id, task_id) for task_id in forecast.task_ids],
            "strategy": {"name": forecast.strategy, "parameters": forecast.parameters},
            "data_cut": forecast.cut,
            "probe_fraction": forecast.share,
            "progress": forecast.progress if forecast.state == LeasedState.SCORING else None,
            "forecast": forecast.result,
            "attempt": min(forecast.attempts_used + (forecast.state != LeasedState.FAILED), forecast.max_attempts),
        }
    )  # fmt: skip
