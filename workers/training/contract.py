"""What crosses the pipe between a supervisor and its training child: frozen plain data, stdlib types only.

Importing this module loads neither torch nor anything of the service.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Signal = Literal["cancel", "stop"]
"""What a supervisor may ask of a running child: give up, or write a checkpoint and leave."""

Precision = Literal["auto", "fp32", "bf16"]

AdapterKind = Literal["lora", "dora", "oft"]
"""What strategies tell adapters apart by: DoRA is an option of PEFT's LoRA, and yet cannot be added up like it."""


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """A base model that has been resolved to a folder on disk.

    `sha256` covers the checkpoint's configuration, weights and tokenizer files; `None` has it computed.
    `gguf` names a quantised file inside `folder`: the child dequantises it once into a folder below `cache`, which
    is the base from then on (and what `sha256` covers). `pinned` is the hash that the allow-list demands: of the GGUF file
    where there is one, else what `sha256` covers.
    """

    name: str
    folder: str
    revision: str | None = None
    sha256: str | None = None
    gguf: str | None = None
    cache: str | None = None
    pinned: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """The shape of a model's adapter.

    `target_modules` is `"auto"` (the attention projections), a list of module names or name endings, or a
    regular expression over full module names. `r`, `alpha`, `use_rslora` (scale by alpha / √r instead of alpha / r),
    `use_dora` and `max_rank`, which bounds what strategies may concatenate, shape LoRA; `oft_block_size`, the side
    of the rotation's blocks, shapes OFT.
    """

    type: Literal["lora", "oft"] = "lora"
    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "auto"
    max_rank: int = 64
    use_rslora: bool = False
    use_dora: bool = False
    oft_block_size: int = 32

    @property
    def kind(self) -> AdapterKind:
        """The kind of adapter this makes, as strategies declare what they can take."""
        return "dora" if self.type == "lora" and self.use_dora else self.type


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How an update trains. Rates are per optimiser step; lengths are in tokens.

    `max_steps` caps the optimiser steps that `epochs` would take. `batch_size` counts the rows of one forward
    pass, replayed ones included; `gradient_accumulation` passes make one optimiser step.
    `precision="auto"` is bfloat16 autocast on a GPU that has it and float32 elsewhere. With several `devices` each
    takes its part of every batch; `batch_size` stays that of the whole. `gradient_checkpointing` keeps only
    every layer's input and computes the rest again in backward: less memory, a third more time. `compile`
    has torch.compile translate the encoder: worth its minute on long runs.
    """

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 5e-4
    head_learning_rate: float = 5e-3
    max_length: int = 128
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Precision = "auto"
    gradient_accumulation: int = 1
    evaluation_batch_size: int = 64
    devices: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One update, as the child needs it.

    `parent` is the parent version's folder, `None` to start from the base. `labels` is the head order of the
    new version: the parent's labels first, in their order, then the new ones. `fresh` and `replay` are NDJSON
    files of rows `{"id": int, "task": str, "text": str, "label": str}`; an empty `replay` path or file means no
    buffer. For `causal-lm` there are no `labels`, and instead of text and label a row has `prompt` and `completion`,
    `messages` (`[{"role", "content"}]`) or `text`. `parent_state` is the folder of what the parent's strategy
    left, `None` to look in `parent`'s own `state`. `child` is, for `blend` alone, the folder of the version on the other
    side of `parent`; there are no rows then. `upload` is, for `import` alone, the folder of the adapter that was trained
    elsewhere; `settings` has no more to say there than `max_length`. `output` is the folder to write, complete or not at all. `lineage` goes
    verbatim into `version.json`. A `share` below 1 takes that share of the planned steps, the first ones of the
    schedule of all.
    """

    task_type: str
    base: BaseFolder
    strategy: str
    labels: tuple[str, ...]
    fresh: str
    output: str
    checkpoints: str
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    parent: str | None = None
    parent_state: str | None = None
    child: str | None = None
    upload: str | None = None
    replay: str = ""
    checkpoint_seconds: float = 20.0
    lineage: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What an update cost and how it went. `losses` is a curve of (step, mean loss), 200 points at most.

    `epochs` is the number of passes over the fresh rows; `peak_memory_bytes` is device memory on a GPU and
    the child's resident set elsewhere; `train_seconds` counts this attempt alone. `auto` tells how the strategy was
    found where that was left to `auto`. `warnings` tells what was asked for and could not be done, though the run went
    on without it.
    """

    steps: int
    epochs: float
    fresh_rows: int
    replay_rows: int
    final_loss: float | None
    train_seconds: float
    peak_memory_bytes: int
    labels: tuple[str, ...]
    losses: tuple[tuple[int, float], ...]
    packages: dict[str, str]
    device: str
    auto: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Score one version folder on one NDJSON file of rows.

    `max_length=None` is the length a classifier trained with; language models are all graded at one length, so that their
    means are over the same tokens. `version=None` is the untouched base (`causal-lm` only: a base has no head).

    `precision="auto"` means float32 here: a score must come out the same wherever the version is loaded.
    """

    task_type: str
    base: BaseFolder
    version: str | None
    rows: str
    max_length: int | None = None
    batch_size: int = 64
    precision: Precision = "auto"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the first steps of an update told, and cost.

    `rate_share` is their share of the learning rates of all `total_steps`, summed. `new_loss` is the mean loss in nats per
    prediction on (a sample of) the fresh rows before the first step: the parent's, with the logits of new labels at 0.
    `prepare_seconds` go by before the first step, `train_seconds` with the steps themselves.
    """

    steps: int
    total_steps: int
    rate_share: float
    new_loss: float
    fresh_rows: int
    replay_rows: int
    prepare_seconds: float
    train_seconds: float


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One version's answers on one eval set, in ascending order of example id.

    `predicted` indexes into `labels`; `confidence` is the softmax probability of the predicted label. A row
    whose label the version has never seen is not correct.

    For `causal-lm`, `graded` is the mean log-likelihood of each row's answer tokens in nats and `confidence` its
    exponential; `correct` says whether greedy decoding gives the answer token for token, its end included (never
    so for plain text, nor for an answer cut at the maximum length); `predicted` is -1 and `labels` are empty.
    `likelihoods` are, of a classifier, the softmax probabilities of the right labels, 0 for one it has never seen.
    `measures` are its aggregates: `perplexity`, `mean_log_likelihood` (both per token, over the whole set) and, where
    any row has a prompt, `exact_match` over those rows. An empty set has none, nor has a classifier's.
    """

    example_ids: tuple[int, ...]
    predicted: tuple[int, ...]
    confidence: tuple[float, ...]
    correct: tuple[bool, ...]
    labels: tuple[str, ...]
    seconds: float
    graded: tuple[float, ...] = ()
    likelihoods: tuple[float, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a child stands: its phase, steps done of steps planned, the recent mean loss, seconds to go.

    `gpu_memory_bytes` is what it holds on its GPU, None without one; `checkpoint_step` is the step of the newest
    checkpoint, 0 without one: another attempt would go on from there. `repeat` of `repeats` numbers the training, for a
    supervisor that runs several for one update; a child knows of one.

    Phases: `searching` (only `auto`), `loading`, `tokenising`, `preparing`, `training`, `consolidating`, `saving`, `evaluating`.
    """

    phase: str
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eta_seconds: float | None = None
    gpu_memory_bytes: int | None = None
    checkpoint_step: int = 0
    repeat: int = 1
    repeats: int = 1
