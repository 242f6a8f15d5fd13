"""What a continual-learning strategy is: losses and state, never a step.

The loop batches, runs backward, clips, steps and saves. A strategy says which rows it wants, what the loss of
a batch is, and what it must remember for the next update.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.optim import Optimizer

from workers.training.adapters import Adapter, compress, concatenate
from workers.training.batches import Batch
from workers.training.classifier import Classifier
from workers.training.errors import TrainingFailed
from workers.training.run import Run


class Params(BaseModel):
    """Parameters of a strategy: bounded, and nothing beyond those declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Strategy(ABC):
    """One continual-learning method. Class attributes are what the catalogue tells the service."""

    name: ClassVar[str]
    summary: ClassVar[str]
    task_types: ClassVar[tuple[str, ...]] = ("text-classification",)
    adapter_types: ClassVar[tuple[str, ...]] = ("lora",)
    needs_replay: ClassVar[bool] = False
    """The caller should send the replay buffer (empty when there is none)."""
    starts_from: ClassVar[Literal["parent", "base"]] = "parent"
    uses: ClassVar[frozenset[str]] = frozenset()
    """`all_rows`: every row the lineage has learnt comes as fresh, not only the new ones."""
    adapter: ClassVar[Literal["continued", "added"]] = "continued"
    """`added`: a fresh adapter is trained over the frozen parent, and the version is their sum."""

    many_devices: ClassVar[bool] = False
    """Whether `loss` is a mean over the batch's rows (plus terms that no row enters), so that it is the weighted sum
    of the losses of the batch's parts. `adjust_gradients` and `adjust_step` see the whole batch's gradients."""

    trains: ClassVar[bool] = True
    """Whether there are optimiser steps at all; without them everything happens in `start` and `finish`."""

    params_type: ClassVar[type[Params]] = Params
    params: Params

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        try:
            self.params = self.params_type.model_validate(dict(parameters))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            first = f"{'.'.join(map(str, problems[0]['loc']))}: {problems[0]['msg']}"
            raise TrainingFailed("bad_parameters", f"{self.name}: {first}", {"errors": problems}) from error

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

    def follow(self, optimiser: Optimizer) -> None:  # noqa: B027
        """See the optimiser, before `start`: its state tells how far it takes each entry (`proximal.step_sizes`)."""

    def start(self, run: Run) -> None:  # noqa: B027 - most methods have nothing to do here
        """Prepare, once, before the first step and again on resuming; must be a function of the run alone."""

    @abstractmethod
    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        """The scalar loss of one batch, averaged over its rows."""

    def adjust_gradients(self, model: Classifier) -> None:  # noqa: B027
        """Change gradients in place after backward and before clipping (projection methods)."""

    def adjust_step(self, model: Classifier) -> None:  # noqa: B027
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

    def checkpoint(self) -> dict[str, Tensor]:
        """What `start` cannot rebuild: state that has changed since the first step."""
        return {}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take back what `checkpoint` returned."""
