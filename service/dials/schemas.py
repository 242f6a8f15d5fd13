"""What the calls on dials take and answer."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.models import DialState
from service.registry.schemas import Body, GateSpec
from service.reports.schemas import Decision, FlipCounts
from service.updates.schemas import UpdateError

DEFAULT_BETAS = tuple(step / 10 for step in range(11))
MOST_POINTS = 101


class DialRequest(Body):
    """Which points to score. Points of earlier requests stay; the ends, 0 and 1, are always among them."""

    betas: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=list(DEFAULT_BETAS), max_length=MOST_POINTS, examples=[[0.25, 0.5, 0.75]]
    )


class DialTask(BaseModel):
    """What one point of a dial scores on one task."""

    task: str
    role: Literal["new", "old", "relearnt"] = Field(description="In the update that made the version")
    eval_size: int
    score: float | None = Field(
        description="As in the report; null for a parent without a head, which has no answers"
    )
    interval: list[float] | None = Field(
        description="Bounds on the score, each at the gate's confidence by itself: Clopper-Pearson, or the wider of the bootstrap's and "
        "Student's t where scores are graded (null for one example). Points are scored on the same examples, so whether they differ is for `flips` to say"
    )
    delta: float | None = Field(description="Difference from the parent, β = 0")
    flips: FlipCounts | None = Field(description="Against the parent")
    measures: dict[str, float] = Field(default={}, description="Of language models: perplexity, exact_match")


class DialPoint(BaseModel):
    """The model at one β, on every task that the version was scored on. Measures are those of the report."""

    beta: float
    source: Literal["recorded", "computed"] = Field(
        description="recorded: the stored scores of parent (0) and version (1); computed: scored for the dial"
    )
    tasks: list[DialTask]
    average_accuracy: float | None
    backward_transfer: float | None
    forgetting: float | None
    stability: float | None = Field(description="Mean share of the first score that old tasks kept")
    worst_retention: float | None
    plasticity: float | None = Field(description="Mean score of the tasks the update learnt")
    negative_flip_rate: float | None = Field(description="Of old tasks, against the parent")
    old_tasks: Decision | None = Field(
        description="What the gate's rule on old tasks says of the point against the parent; null without old tasks"
    )


class DialRead(BaseModel):
    """The dial between a version and its parent, as far as it is scored."""

    model: str
    version: int
    parent: int
    status: DialState
    betas: list[float] = Field(description="The points that were asked for")
    gate: GateSpec = Field(description="The model's gate when the dial was first asked for")
    points: list[DialPoint] = Field(description="Those scored so far, by β")
    recommended_beta: float | None = Field(
        description="The last of the points that pass the gate's rule on old tasks one after the other, from the parent on. "
        "Testing in that order and stopping at the first that does not pass keeps the chance of any false pass at that of "
        "one test. Null while points are missing, without old tasks, and where the first point does not pass"
    )
    attempt: int
    max_attempts: int
    error: UpdateError | None
    requested_by: str
    requested_at: datetime
    finished_at: datetime | None
