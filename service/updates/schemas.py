"""What the calls on updates take and answer."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.models import UpdateState
from service.registry.schemas import Body
from service.schemas import FreeText, Metadata, Name


class StrategyRequest(Body):
    """The continual-learning method and its parameters; GET /v1/strategies lists both."""

    model_config = ConfigDict(extra="allow")

    name: Name = Field(default="replay", examples=["replay"])

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything given beside the name."""
        return dict(self.__pydantic_extra__ or {})


class TrainingRequest(Body):
    """How the update trains. Left out, the defaults are good for a few hundred to a few thousand short texts."""

    epochs: int = Field(default=3, ge=1, le=1000, description="Passes over the fresh rows")
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000, description="Cap on optimiser steps")
    batch_size: int = Field(
        default=16, ge=1, le=4096, description="Rows per forward pass, replayed rows included"
    )
    learning_rate: float = Field(default=5e-4, gt=0, le=1, description="Of the adapter")
    head_learning_rate: float = Field(default=5e-3, gt=0, le=1, description="Of the classification head")
    max_length: int = Field(default=128, ge=8, le=131_072, description="Tokens per row; longer rows are cut")
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1, description="Share of the steps with a rising rate")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    gradient_accumulation: int = Field(default=1, ge=1, le=1024)
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Same seed and data: same adapter")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    evaluation_batch_size: int = Field(default=64, ge=1, le=4096)
    devices: int = Field(
        default=1, ge=1, le=64, description="GPUs (CPU cores where there is none) that share every batch"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations again in backward: less memory, a third more time"
    )
    compile: bool = Field(
        default=False, description="Translate the encoder with torch.compile; pays on long runs"
    )
    repeats: int = Field(
        default=1,
        ge=1,
        le=10,
        description="Trainings in all. The version is the one of `seed`, whatever the others score; those, of seeds derived "
        "from it, are scored on the same eval sets and thrown away, and the report shows how much a seed alone changes. "
        "Takes so many times as long",
    )


class ReplayRequest(Body):
    """How the update shares the replay buffer among what earlier updates learnt."""

    boost: Literal["none", "flips"] = Field(
        default="none",
        description="none: as the model's policy has it. flips: labels of tasks whose eval examples turned wrong along "
        "the parent's lineage are rehearsed more. Eval examples are never trained on, so each such (task, label) gets "
        "more of the buffer's slots for its train examples: with r its negative flips per comparison of a version's "
        "answer with the one before, and r̄ the mean of r over all (task, label), its share weighs 1 + r / r̄. Half of "
        "the slots are shared equally, half in proportion to r; within the model's replay capacity, and the lowest "
        "priorities first as ever. The version's provenance records r and weights. Needs a strategy that rehearses and a "
        "replay policy by task and label (not `reservoir`)",
    )


class UpdateCreate(Body):
    """A request to learn one or more tasks."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"tasks": ["refunds"], "strategy": {"name": "replay"}, "training": {"epochs": 3}}]
        },
    )

    tasks: list[Name] = Field(min_length=1, max_length=1000, description="Tasks whose new rows are learnt")
    strategy: StrategyRequest = Field(default_factory=lambda: StrategyRequest(name="replay"))
    training: TrainingRequest = Field(default_factory=TrainingRequest)
    replay: ReplayRequest = Field(default_factory=lambda: ReplayRequest(boost="none"))
    parent: Literal["champion"] | Annotated[int, Field(ge=0, le=2**31)] = Field(
        default="champion",
        description="Version to start from; 'champion' is looked up when the update starts, so that updates posted "
        "in a row build on each other",
    )
    relearn: bool = Field(
        default=False, description="Take the tasks' rows again that the lineage has learnt before"
    )
    promotion: Literal["gate", "manual", "always"] = Field(
        default="gate",
        description="gate: the verdict decides; manual: a person approves; always: promote whatever the verdict "
        "(needs the scope `deploy`)",
    )
    metadata: Metadata = Field(default_factory=dict)


class BlendCreate(Body):
    """A request to register a point between a version and its parent as a version of its own."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"beta": 0.6}]})

    beta: float = Field(
        gt=0, lt=1, description="ΔW = (1 − β)·parent + β·version; 0 would be the parent and 1 the version"
    )
    promotion: Literal["gate", "manual", "always"] = Field(
        default="gate", description="As of any update; `always` needs the scope `deploy`"
    )
    metadata: Metadata = Field(default_factory=dict)


class Progress(BaseModel):
    """How far an active update is."""

    phase: str
    step: int
    total_steps: int
    loss: float | None = None
    eta_seconds: float | None = None
    gpu_memory_bytes: int | None = Field(
        default=None, description="What the training process holds on its GPU; null without one"
    )
    checkpoint_step: int = Field(
        default=0,
        description="Step of the newest checkpoint, from which another attempt would go on; 0: none yet",
    )
    repeat: int = Field(
        default=1, description="Which training is running; 1 is the version's own, steps count all of them"
    )
    repeats: int = Field(default=1, description="How many trainings there are, as `training.repeats` asks")


class UpdateError(BaseModel):
    """Why an update failed, or why its last attempt did."""

    code: str
    message: str
    attempt: int | None = None


class StrategyRead(BaseModel):
    """The strategy an update trains with, defaults filled in."""

    name: str
    parameters: dict[str, Any]


class UpdateRead(BaseModel):
    """An update as it stands."""

    id: str
    model: str
    status: UpdateState
    tasks: list[str]
    strategy: StrategyRead
    training: dict[str, Any]
    replay: ReplayRequest
    parent: Literal["champion"] | int
    relearn: bool
    promotion: Literal["gate", "manual", "always"]
    metadata: dict[str, Any]
    warnings: list[str] = Field(description="What may keep the gate from deciding, said at the request")
    data_cut: int = Field(description="Last ingest batch the update may see")
    parent_version: int | None = Field(description="Resolved when the update starts")
    version: int | None = Field(description="What it yielded")
    compared_with: int | None = Field(description="The champion the verdict compares with")
    verdict: dict[str, Any] | None
    decided_by: str | None
    progress: Progress | None
    attempt: int = Field(description="1 for the first; rises when an attempt fails, not when a worker stops")
    max_attempts: int
    next_attempt_at: datetime | None = Field(
        description="After a failed attempt: it is not tried again before; null otherwise"
    )
    error: UpdateError | None
    cancel_requested: bool
    requested_by: str
    request_id: str | None = Field(description="`X-Request-Id` of the call that asked for it")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class EventRead(BaseModel):
    """One change in the life of an update."""

    id: int
    type: str
    data: dict[str, Any]
    at: datetime


class Decision(Body):
    """Why a held candidate is approved or rejected."""

    reason: FreeText | None = None


class StrategyInfo(BaseModel):
    """A strategy of the catalogue."""

    name: str
    summary: str
    description: str
    offered: bool = Field(
        default=True,
        description="Whether POST …/updates takes it; `blend` is asked for with POST …/versions/{version}/blend",
    )
    task_types: list[str]
    adapter_types: list[str]
    needs_replay: bool
    starts_from: Literal["parent", "base"]
    uses: list[str] = Field(
        default=[], description="`all_rows`: it trains on every row learnt so far, not only new ones"
    )
    probes: bool = Field(
        default=False, description="POST …/updates:forecast takes it: its first steps tell of its end"
    )
    many_devices: bool = Field(default=False, description="It takes `training.devices` > 1")
    seeded: bool = Field(
        default=True, description="Another seed gives another version: it takes `training.repeats` > 1"
    )
    parameters: dict[str, Any] = Field(description="JSON schema of its parameters")


class StrategyList(BaseModel):
    """All strategies."""

    data: list[StrategyInfo]
    has_more: Literal[False] = False
    next_cursor: None = None
