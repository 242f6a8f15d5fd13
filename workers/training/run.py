"""What a strategy sees of the update it takes part in."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.training.adapters import Adapter
from workers.training.batches import Batch, Pick, TokenTable, collate, in_length_order
from workers.training.classifier import ClassificationHead, Classifier
from workers.training.contract import TrainRequest
from workers.training.watching import Watch


@dataclass(frozen=True, slots=True)
class Parent:
    """The parent version, off the model. `state` is what this very strategy left there, `None` when it left nothing."""

    adapter: Adapter
    head: ClassificationHead
    state: Mapping[str, Tensor] | None


@dataclass(frozen=True, slots=True)
class Run:
    """One update in progress. `replay` holds the buffer even for strategies that do not rehearse it.

    `validation` holds the rows that the strategy keeps out of training, fresh and buffered ones together.
    """

    request: TrainRequest
    model: Classifier
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    fresh: TokenTable
    replay: TokenTable
    validation: TokenTable
    parent: Parent | None
    watch: Watch

    @property
    def labels(self) -> int:
        """Rows of the head."""
        return len(self.request.labels)

    def example_ids(self, pick: Pick) -> list[int]:
        """The ids of the picked examples, fresh ones first."""
        return [*self.fresh.ids[pick.fresh].tolist(), *self.replay.ids[pick.replay].tolist()]

    def batches_of(self, table: TokenTable, *, batch_size: int, phase: str) -> Iterator[Batch]:
        """Go once through `table` in length order, reporting and obeying between batches."""
        for number, pick in enumerate(in_length_order(table, batch_size)):
            self.watch.at(phase, number * batch_size, len(table))
            yield collate(table, table, pick).to(self.device)
