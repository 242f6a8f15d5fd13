"""What a continual-learning strategy is: losses and state, never a step.

The loop batches, runs backward, clips, steps and saves. A strategy says which rows it wants, what the loss of
a batch is, and what it must remember for the next update.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor
from torch.optim import Optimizer

from workers.training.adapters import Adapter
from workers.training.algebra import compress, concatenate
from workers.training.batches import Batch
from workers.training.contract import AdapterKind
from workers.training.errors import TrainingFailed
from workers.training.model import AdaptedModel
from workers.training.run import Run

ALL_TASK_TYPES = ("text-classification", "causal-lm")


class Params(BaseModel):
    """Parameters of a strategy: bounded, and nothing beyond those declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Offer:
    """What an update may show as its strategy: what the catalogue tells the service, and checked parameters."""

    name: ClassVar[str]
    summary: ClassVar[str]
    offered: ClassVar[bool] = True
    """Whether a request for an update may name it; what is not has a call of its own."""
    task_types: ClassVar[tuple[str, ...]] = ("text-classification",)
    adapter_types: ClassVar[tuple[AdapterKind, ...]] = ("lora",)
    """Kinds of adapter it can train; what adds adapters up can do so with plain LoRA only."""
    needs_replay: ClassVar[bool] = False
    """The caller should send the replay buffer (empty when there is none)."""
    starts_from: ClassVar[Literal["parent", "base"]] = "parent"
    uses: ClassVar[frozenset[str]] = frozenset()
    """`all_rows`: every row the lineage has learnt comes as fresh, not only the new ones."""
    probes: ClassVar[bool] = True
    """Whether its first steps tell of its end, so that an update with it can be forecast."""
    many_devices: ClassVar[bool] = False
    """Whether `loss` is a mean over the batch's predictions (plus terms that no row enters), so that it is the weighted
    sum of the losses of the batch's parts. `adjust_gradients` and `adjust_step` see the whole batch's gradients."""

    seeded: ClassVar[bool] = True
    """Whether another seed gives another version; without, repeating an update would show no noise."""

    params_type: ClassVar[type[Params]] = Params
    params: Params

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        try:
            self.params = self.params_type.model_validate(dict(parameters))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            first = f"{'.'.join(map(str, problems[0]['loc']))}: {problems[0]['msg']}"
            raise TrainingFailed("bad_parameters", f"{self.name}: {first}", {"errors": problems}) from error


class Strategy(Offer, ABC):
    """One continual-learning method."""

    adapter: ClassVar[Literal["continued", "added"]] = "continued"
    """`added`: a fresh adapter is trained over the frozen parent, and the version is their sum."""

    trains: ClassVar[bool] = True
    """Whether there are optimiser steps at all; without them everything happens in `start` and `combine`."""

    validates_parent: ClassVar[bool] = False
    """`validation` weighs the update against its parent: without one nothing is held out."""

    @property
    def replay_fraction(self) -> float:
        """Share of buffered rows in the training mix."""
        return 0.0

    @property
    def replay_draws(self) -> int:
        """How many independent draws from the buffer share the replayed rows of a batch (`batch.draw`)."""
        return 1

    @property
    def validation_fraction(self) -> float:
        """Share of fresh and of buffered rows held out of training, as `run.validation`."""
        return 0.0

    def follow(self, optimiser: Optimizer) -> None:
        """See the optimiser, before `start`: its state tells how far it takes each entry (`proximal.step_sizes`)."""

    def start(self, run: Run) -> None:
        """Prepare, once, before the first step and again on resuming; must be a function of the run alone."""

    @abstractmethod
    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """The scalar loss of one batch, averaged over `batch.labels` (rows, or answer tokens of a language model)."""

    def adjust_gradients(self, model: AdaptedModel) -> None:
        """Change gradients in place after backward and before clipping (projection methods)."""

    def adjust_step(self, model: AdaptedModel) -> None:
        """Change parameters in place after the optimiser's step: Adam does not keep to a projected gradient."""

    def combine(self, run: Run, trained: Adapter) -> tuple[Adapter, float]:
        """Make the version's one adapter of the one just trained, before `finish`.

        The model's head may be changed in place here.

        Returns:
            The adapter, of rank `max_rank` at most, and the relative error of its compression (0 for none).
        """
        if self.adapter == "added" and run.parent is not None:
            return compress(concatenate(run.parent.adapter, trained), run.request.adapter.max_rank)
        return trained, 0.0

    def finish(self, run: Run) -> dict[str, Tensor]:
        """Return the state that the next update needs, stored beside the adapter; empty for none."""
        return {}

    def record(self) -> Mapping[str, JsonValue]:
        """Return what this update decided or measured, for `version.json`; called last."""
        return {}

    def checkpoint(self) -> dict[str, Tensor]:
        """What `start` cannot rebuild: state that has changed since the first step."""
        return {}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `checkpoint` returned."""
