"""What the calls on forecasts take and answer."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.forecasts.estimating import Outlook, Role
from service.models import LeasedState
from service.registry.schemas import GateSpec
from service.updates.schemas import Progress, ReplayRequest, StrategyRead, UpdateCreate, UpdateError


class ForecastCreate(UpdateCreate):
    """The body of an update request, and how to forecast it. `promotion` and `metadata` change nothing here."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"tasks": ["refunds"], "strategy": {"name": "sequential"}}]},
    )

    probe_fraction: float = Field(
        default=0.05,
        gt=0,
        le=0.5,
        description="Share of the update's steps that the probe takes; 8 steps at least",
    )
    level: float = Field(
        default=0.8, ge=0.5, le=0.9, description="How often an interval should hold what comes of it"
    )


class ForecastSigns(BaseModel):
    """What the forecast of one task was made from."""

    score_change: float = Field(description="Mean score, probe minus parent, on the same eval rows")
    likelihood_change: float = Field(description="The same of the mean probability of the right label")
    parent_score: float
    new_loss: float = Field(
        description="The parent's mean loss on the new rows, in nats; new labels have logit 0"
    )
    label_overlap: float = Field(
        description="Share of the new rows whose label the task has; 0 without labels"
    )


class ForecastTask(BaseModel):
    """What the update would do to one task that was learnt, or is guarded, before it."""

    task: str
    role: Role
    eval_size: int = Field(description="Eval rows that the gate would judge on")
    probed_rows: int = Field(description="Those of them that parent and probe answered; 500 at most")
    parent_score: float = Field(description="On those")
    predicted_score: float
    predicted_change: float
    forgetting: float = Field(
        description="What is lost against the parent: the predicted change with its sign turned"
    )
    interval: list[float] | None = Field(
        description="Of the change, at `level`; null where the model's past updates do not suffice"
    )
    calibrated: bool
    past_updates: int = Field(description="Past updates with such a task that the interval is calibrated on")
    gate: Outlook = Field(
        description="What the gate would probably say of this task: `likely_pass` and `likely_fail` at both ends of the "
        "interval, `at_risk` between, `undecidable` where the eval set is too small for any update to pass"
    )
    signs: ForecastSigns


class PastUpdate(BaseModel):
    """A past update that the forecast was held against."""

    update: str
    version: int
    strategy: str
    mean_change: float = Field(description="What it changed of the scores of tasks learnt before, on average")


class SkippedUpdate(BaseModel):
    """A past update that could not be probed."""

    update: str
    reason: str


class ForecastCosts(BaseModel):
    """What the probe cost, and what the whole update would."""

    fresh_rows: int
    replay_rows: int
    probe_steps: int
    total_steps: int = Field(description="Of one training")
    probe_seconds: float = Field(description="Preparing, training and scoring")
    training_seconds: float = Field(
        description="Of the whole update, all `training.repeats` included, at the probe's pace; without scoring"
    )


class ForecastResult(BaseModel):
    """What an update would cost, as far as can be told before it."""

    summary: str
    calibrated: bool = Field(description="Every task has an interval")
    tasks: list[ForecastTask]
    past: list[PastUpdate]
    skipped: list[SkippedUpdate]
    costs: ForecastCosts


class ForecastRead(BaseModel):
    """A forecast as it stands."""

    id: str
    model: str
    status: LeasedState
    tasks: list[str]
    strategy: StrategyRead
    training: dict[str, Any]
    replay: ReplayRequest
    relearn: bool
    parent_version: int = Field(description="As of the request")
    data_cut: int = Field(description="Last ingest batch that the update would see")
    probe_fraction: float
    level: float
    gate: GateSpec = Field(description="The model's gate at the request")
    warnings: list[str]
    progress: Progress | None = Field(description="Of the probe under way, while there is one")
    forecast: ForecastResult | None = Field(description="Null until it is done")
    attempt: int
    max_attempts: int
    error: UpdateError | None
    requested_by: str
    request_id: str | None
    requested_at: datetime
    finished_at: datetime | None
