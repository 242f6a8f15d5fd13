"""What the registry's calls take and answer."""

import re
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from service.schemas import FreeText, Metadata, Name, storable

TaskType = Literal["text-classification", "causal-lm"]


class Body(BaseModel):
    """A request body; unknown fields are errors, so that a typing mistake is never silently ignored."""

    model_config = ConfigDict(extra="forbid")


LORA_OPTIONS = ("r", "max_rank", "alpha", "use_rslora", "use_dora")
OFT_OPTIONS = ("oft_block_size",)


class AdapterSpec(Body):
    """Shape of the model's adapters: LoRA, with rank-stabilised scaling or DoRA as options, or OFT."""

    type: Literal["lora", "oft"] = "lora"
    r: int = Field(default=8, ge=1, le=512, description="LoRA rank of each update's adapter")
    max_rank: int = Field(
        default=64, ge=1, le=512, description="Rank past which concatenated adapters are compressed by SVD"
    )
    alpha: float = Field(
        default=16, gt=0, le=4096, description="LoRA scaling numerator: ΔW is scaled by alpha / r"
    )
    use_rslora: bool = Field(
        default=False,
        description="Scale LoRA by alpha / √r, which keeps high ranks learning (arXiv 2312.03732)",
    )
    use_dora: bool = Field(
        default=False,
        description="Train LoRA's magnitudes and directions apart (arXiv 2402.09353); such adapters cannot be added up, "
        "which some strategies need",
    )
    oft_block_size: int = Field(
        default=32, ge=2, le=4096,
        description="Side of the rotation's blocks in OFT (arXiv 2306.07280); divides every adapted layer's inputs",
    )  # fmt: skip
    dropout: float = Field(
        default=0, ge=0, lt=1, description="Dropout inside the adapter; costs a quarter of a step on a CPU"
    )
    target_modules: Literal["auto"] | str | list[Name] = Field(
        default="auto", max_length=256,
        description="'auto' (attention), a list of module names, or a regular expression over module paths",
    )  # fmt: skip

    @field_validator("target_modules")
    @classmethod
    def _can_be_matched(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            storable(value)
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _rank_fits(self) -> "AdapterSpec":
        if self.kind == "lora" and self.r > self.max_rank:
            raise ValueError(f"r ({self.r}) is greater than max_rank ({self.max_rank})")
        if not self.target_modules:
            raise ValueError("target_modules is empty; use 'auto' for the attention projections")
        return self

    @model_validator(mode="after")
    def _options_belong_to_the_type(self) -> "AdapterSpec":
        foreign = LORA_OPTIONS if self.type == "oft" else OFT_OPTIONS
        fields = type(self).model_fields
        # Compared with the defaults, not with what was sent: stored specs name every field.
        for name in foreign:
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} is no option of an adapter of type '{self.type}'; leave it out")
        return self

    @property
    def kind(self) -> Literal["lora", "dora", "oft"]:
        """What the catalogue of strategies calls this adapter: DoRA cannot do all that plain LoRA can."""
        return "dora" if self.type == "lora" and self.use_dora else self.type


class ReplaySpec(Body):
    """The model's replay buffer."""

    capacity: int = Field(
        default=500, ge=0, le=1_000_000, description="How many examples updates may rehearse"
    )
    policy: Literal["balanced", "reservoir", "weighted"] = Field(
        default="balanced",
        description="balanced: equal shares per task and label; reservoir: one uniform sample of everything learnt; "
        "weighted: balanced, and within a share rows are drawn by their `weight`",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**62,
        description="Same seed and same data: same buffer. Fixed when the model is made",
    )


class GateSpec(Body):
    """When a candidate may replace the champion by itself."""

    max_regression: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Largest loss on an old task that is tolerated: of accuracy, or for causal-lm of mean token "
        "log-likelihood in nats (0.02 is 2 % of perplexity)",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    min_new_score: float | None = Field(
        default=None,
        ge=-1000,
        le=1,
        description="Least score on each new task: accuracy, or for causal-lm mean token log-likelihood",
    )
    on_inconclusive: Literal["hold", "promote", "reject"] = Field(
        default="hold", description="What to do when the eval sets are too small to tell"
    )


class RetentionSpec(Body):
    """How long a model keeps what it no longer needs; null is for ever."""

    examples_days: int | None = Field(
        default=None, ge=1, le=36_500,
        description="Raw examples older than this are deleted. Kept beyond it: the replay buffers of the champion, "
        "of where a rollback goes, of aliased and held versions and of the newest `versions` (20 at most), and the eval "
        "examples of learnt and guarded tasks, since scores stand on them",
    )  # fmt: skip
    versions: int | None = Field(
        default=None, ge=1, le=10_000,
        description="Adapters of versions other than the newest so many are deleted. Kept all the same: champion, previous "
        "champion, aliased and held versions, parents of unfinished updates, and the ancestors of all these",
    )  # fmt: skip
    events_days: int | None = Field(
        default=None, ge=1, le=36_500, description="Events of updates that finished longer ago are deleted"
    )  # fmt: skip


class ModelCreate(Body):
    """A new model."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "support-triage", "base_model": "minilm-l6", "task_type": "text-classification"}
            ]
        },
    )

    name: Name
    base_model: Name = Field(description="A name from the operator's catalogue of base models")
    task_type: TaskType
    adapter: AdapterSpec = Field(default_factory=AdapterSpec)
    replay: ReplaySpec = Field(default_factory=ReplaySpec)
    gate: GateSpec = Field(default_factory=GateSpec)
    metadata: Metadata = Field(default_factory=dict)


class ReplayChange(Body):
    """A change of the replay buffer; its policy is fixed when the model is made."""

    capacity: int = Field(ge=0, le=1_000_000)


class ModelChange(Body):
    """What of a model may change; fields left out stay as they are."""

    gate: GateSpec | None = Field(
        default=None, description="Replaces the whole policy; needs the scope `admin`"
    )
    replay: ReplayChange | None = None
    retention: RetentionSpec | None = Field(
        default=None, description="Replaces the whole retention; needs the scope `admin`"
    )
    metadata: Metadata | None = None


class ModelCounts(BaseModel):
    """How much a model holds."""

    tasks: int
    train_examples: int
    eval_examples: int
    versions: int = Field(description="Trained versions; the base is not counted")
    queued_updates: int
    awaiting_approval: int


class ModelRead(BaseModel):
    """A model as it stands."""

    id: str
    name: str
    base_model: str
    task_type: TaskType
    adapter: AdapterSpec
    replay: ReplaySpec
    gate: GateSpec
    retention: RetentionSpec
    metadata: dict[str, Any]
    champion: int = Field(description="The version serving follows; 0 is the untouched base")
    previous: int | None = Field(
        description="Where a plain rollback goes; null when there is nowhere to go back to"
    )
    labels: list[str] = Field(description="Every label among the model's examples")
    counts: ModelCounts
    active_update: str | None = Field(description="The update that is training or evaluating now")
    created_at: datetime
    archived_at: datetime | None


class TaskScore(BaseModel):
    """A version's latest score on one task."""

    task: str
    score: float | None
    eval_size: int


class Artifact(BaseModel):
    """The stored adapter folder of a version."""

    sha256: str = Field(description="Checksum of the tar that GET …/adapter sends")
    bytes: int


class VersionRead(BaseModel):
    """An immutable version with its lineage."""

    model: str
    version: int
    parent: int | None
    lineage: list[int] = Field(description="Ancestors from the base to this version")
    update: str | None
    strategy: str | None
    parameters: dict[str, Any]
    training: dict[str, Any]
    seed: int | None
    data_cut: int = Field(description="Last ingest batch the version may have seen")
    tasks: list[str] = Field(description="Tasks the update taught")
    labels: list[str]
    artifact: Artifact | None = Field(description="null for the base, and once retention has removed it")
    artifact_removed_at: datetime | None = Field(description="When the model's retention removed the adapter")
    scores: list[TaskScore]
    verdict: dict[str, Any] | None
    statistics: dict[str, Any]
    provenance: dict[str, Any]
    aliases: list[str]
    created_at: datetime


class AliasRead(BaseModel):
    """Where an alias points."""

    alias: str
    version: int
    updated_at: datetime


class AliasList(BaseModel):
    """All aliases of a model; `previous` is where a plain rollback of the champion goes."""

    data: list[AliasRead]
    previous: int | None


class AliasPut(Body):
    """Where the alias shall point."""

    version: int = Field(ge=0, le=2**31)
    reason: FreeText | None = None


class RollbackRequest(Body):
    """A rollback of the champion."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "negative feedback on refunds"}]}
    )

    to: int | None = Field(
        default=None, ge=0, le=2**31, description="The version to go to; default: the previous champion"
    )
    reason: FreeText


class RollbackRead(BaseModel):
    """What a rollback did."""

    model: str
    rolled_back_from: int
    champion: int
    previous: int | None
    reason: str
    by: str
    at: datetime


class AliasMoveRead(BaseModel):
    """One row of a model's history."""

    id: int
    alias: str
    kind: Literal["created", "promoted", "approved", "forced", "assigned", "rolled_back"]
    from_version: int | None
    to_version: int
    update: str | None
    by: str
    reason: str | None
    at: datetime
