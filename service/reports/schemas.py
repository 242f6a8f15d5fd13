"""What the reports answer."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.registry.schemas import Body, GateSpec

Decision = Literal["pass", "fail", "inconclusive"]


class FlipCounts(BaseModel):
    """How many examples changed sides against the parent."""

    negative: int = Field(description="Right before, wrong now")
    positive: int = Field(description="Wrong before, right now")


class Spread(BaseModel):
    """How values lie that differ in the seed alone. Each bound holds by itself with the gate's confidence.

    Bounds on accuracies of n examples take at least 1/(n·√12), the standard deviation of rounding, where seeds tie.
    """

    mean: float
    sd: float = Field(description="Sample standard deviation (n − 1)")
    sd_interval: tuple[float, float] = Field(description="Bounds on the standard deviation, by chi-square")
    mean_interval: tuple[float, float] = Field(
        description="Bounds on the mean over all seeds, by Student's t"
    )
    low: float
    high: float


class TaskNoise(BaseModel):
    """What other seeds of the same update give on a task: the floor below which a change says nothing."""

    seeds: list[int] = Field(description="The version's own first; scores and changes in the same order")
    scores: list[float]
    changes: list[float] | None = Field(
        description="Each seed's against the parent; null where it has no score"
    )
    score: Spread
    change: Spread | None
    ratio: float | None = Field(
        description="The version's change in standard deviations of the changes, without its sign"
    )
    p_value: float | None = Field(
        description="Two-sided t-test of the mean change over seeds being 0; null where there is nothing to test"
    )
    p_value_holm: float | None = Field(description="The same, corrected for the number of tasks tested")
    standing: Literal["within_noise", "beyond_noise"] | None = Field(
        description="beyond_noise: `p_value_holm` is at most 1 − the gate's confidence and the version's change has the sign "
        "of the mean over seeds. Without a true change on any task, some task of a report is called so with at most that "
        "probability. Null where nothing could be tested"
    )
    detail: str


class Noise(BaseModel):
    """The noise floor of an update with `training.repeats` > 1."""

    seeds: list[int] = Field(description="Those that were scored, the version's own first")
    diverged: list[int] = Field(description="Seeds whose training ran away; they count in no figure")
    failed: dict[str, str] = Field(
        description="Seeds whose training or scoring failed otherwise, each with its error's code; they count in no figure"
    )
    summary: dict[str, Spread | None] = Field(
        description="Empty where `detail` says why. The summary's measures over seeds; null where the seed takes no part or something was not scored"
    )
    detail: str


class TaskReport(BaseModel):
    """What an update did to one task. Scores are accuracies; for causal-lm mean token log-likelihoods (nats)."""

    task: str
    role: Literal["new", "old", "relearnt"]
    eval_size: int = Field(description="Examples that score, parent_score, delta and flips stand on")
    score: float | None
    parent_score: float | None
    learned_score: float | None = Field(
        description="Of the version that first learnt the task, carried to this version's examples where the eval set grew"
    )
    best_score: float | None = Field(
        description="Best of any earlier version of the lineage, on the same examples; null for a new task"
    )
    delta: float | None = Field(description="Change against the parent")
    delta_ci: list[float] | None = Field(
        description="Bounds on the change, each at the gate's confidence: exact, or the wider of the bootstrap's and Student's t where scores are graded; null without two graded examples"
    )
    p_value: float | None = Field(description="McNemar's exact test of any change")
    p_value_holm: float | None = Field(description="The same, corrected for the number of tasks")
    forgetting: float | None = Field(
        description="Fall from best_score, on the same examples; null for a new task"
    )
    flips: FlipCounts | None
    measures: dict[str, float] = Field(
        default={}, description="Further aggregates, of language models: perplexity, exact_match"
    )
    parent_measures: dict[str, float] = Field(default={}, description="The same of the parent")
    noise: TaskNoise | None = Field(
        default=None, description="Null unless several seeds were scored on the task"
    )


class Reason(BaseModel):
    """What one rule of the gate found on one task."""

    task: str
    rule: str
    decision: Decision
    observed: float | None
    bound: float
    detail: str


class Verdict(BaseModel):
    """The gate's decision with its reasons, the gravest first."""

    decision: Decision
    reasons: list[Reason]


class UpdateSummary(BaseModel):
    """An update in numbers; null where nothing could be measured."""

    average_accuracy: float | None
    learning_accuracy: float | None = Field(description="Mean score right after learning (1810.11910)")
    backward_transfer: float | None = Field(description="Mean change since learning (1706.08840)")
    forward_transfer: float | None
    forgetting: float | None = Field(description="Mean fall from the best earlier score (1801.10112)")
    stability: float | None = Field(description="Mean share of the first score that old tasks kept")
    worst_retention: float | None
    plasticity: float | None = Field(description="Mean score of the tasks the update learnt")
    negative_flip_rate: float | None = Field(
        description="Share of old tasks' examples that turned wrong (2011.09161)"
    )


class UpdateReport(BaseModel):
    """Stability and plasticity of one update."""

    model: str
    version: int
    parent: int
    strategy: str
    tasks: list[TaskReport]
    summary: UpdateSummary
    verdict: Verdict | None
    compared_with: int | None = Field(description="The champion the verdict compares with")
    trained: dict[str, Any] = Field(description="Steps, rows, seconds and loss curve of the training")
    noise: Noise | None = Field(default=None, description="Null where `training.repeats` was 1")
    created_at: datetime


class LineageSummary(BaseModel):
    """A lineage in numbers; null where nothing could be measured."""

    average_accuracy: float | None
    learning_accuracy: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    forgetting: float | None
    stability: float | None
    worst_retention: float | None
    intransigence: float | None


class ForgettingReport(BaseModel):
    """The accuracy matrix of a lineage: one row per version, one column per task."""

    model: str
    version: int
    tasks: list[str] = Field(description="In the order they were learnt")
    versions: list[int] = Field(description="The lineage, from the base on")
    matrix: list[list[float | None]] = Field(
        description="matrix[row][column]: score of versions[row] on tasks[column]; null where it was not scored"
    )
    measures: dict[str, list[list[float | None]]] = Field(
        default={},
        description="Further matrices of the same shape, of language models: perplexity, exact_match",
    )
    summary: LineageSummary


class Answer(BaseModel):
    """What one version said of an example."""

    label: str | None = Field(description="The predicted label; null for causal-lm")
    confidence: float = Field(description="Of the label; for causal-lm the mean probability per token")
    score: float | None = Field(default=None, description="Mean token log-likelihood, for causal-lm")


class LineageFlips(FlipCounts):
    """How often an example changed sides along a lineage, each answer beside the nearest earlier one."""

    negative_at: list[int] = Field(description="The versions that turned it wrong, oldest first")
    positive_at: list[int] = Field(description="The versions that turned it right, oldest first")


class Flip(BaseModel):
    """An example that changed sides between two versions."""

    task: str
    kind: Literal["negative", "positive"]
    id: str
    content: dict[str, Any]
    expected: str | None
    before: Answer
    after: Answer
    lineage: LineageFlips = Field(description="Over the lineage of `after`")


class FlipPage(BaseModel):
    """The examples that changed sides between `before` and `after`."""

    model: str
    before: int
    after: int
    data: list[Flip]
    has_more: bool
    next_cursor: str | None


class Outcome(BaseModel):
    """What a version answered on one eval example."""

    task: str
    id: str
    content: dict[str, Any]
    expected: str | None
    predicted: str | None
    confidence: float
    correct: bool = Field(description="The right label; for causal-lm an exact match under greedy decoding")
    score: float | None = Field(default=None, description="Mean token log-likelihood, for causal-lm")


class GateSimulationRequest(Body):
    """The policy to try. Fields that are left out stay as the model's own gate has them."""

    max_regression: float | None = Field(default=None, ge=0, le=1)
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    min_new_score: float | None = Field(default=None, ge=-1000, le=1)
    on_inconclusive: Literal["hold", "promote", "reject"] | None = None
    promotion: Literal["gate", "manual", "always"] = Field(
        default="gate", description="As if every update had been posted with this"
    )
    versions: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = Field(
        default=None, max_length=100, description="Default: the newest `limit` that were judged"
    )
    limit: int = Field(default=20, ge=1, le=100)

    @property
    def changes(self) -> dict[str, Any]:
        """The gate fields that were named, an explicit null of `min_new_score` among them."""
        named = {"max_regression", "confidence", "min_new_score", "on_inconclusive"} & self.model_fields_set
        given = {name: getattr(self, name) for name in named}
        return {name: value for name, value in given.items() if value is not None or name == "min_new_score"}


class SimulatedVerdict(BaseModel):
    """What the gate would say of one version under the policy that was tried."""

    version: int
    update: str
    compared_with: int = Field(description="The champion it was judged against then, and is again")
    status: str = Field(description="What has become of the update")
    decision_then: Decision | None
    verdict: Verdict
    outcome: Literal["promote", "hold", "reject"] = Field(
        description="A candidate whose parent was no longer champion is held, as the gate does, whatever the verdict"
    )
    changed: bool = Field(description="Whether the decision differs from the one of then")


class SimulationSummary(BaseModel):
    """The simulated outcomes, counted."""

    promote: int
    hold: int
    reject: int
    changed: int


class GateSimulation(BaseModel):
    """The gate's verdicts under another policy, over stored outcomes."""

    model: str
    policy: GateSpec
    data: list[SimulatedVerdict] = Field(description="By version, oldest first")
    summary: SimulationSummary
