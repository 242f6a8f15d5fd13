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
from workers.training.model import AdaptedModel
from workers.training.packing import pack
from workers.training.watching import Watch


@dataclass(frozen=True, slots=True)
class Parent:
    """The parent version, off the model. `state` is what this very strategy left there, `None` when it left nothing."""

    adapter: Adapter
    head: ClassificationHead | None
    state: Mapping[str, Tensor] | None

    @property
    def labels(self) -> int | None:
        """Rows of its head; `None` without one."""
        return None if self.head is None else len(self.head.bias)


@dataclass(frozen=True, slots=True)
class Run:
    """One update in progress. `replay` holds the buffer even for strategies that do not rehearse it.

    `validation` holds the rows that the strategy keeps out of training: `validation_fresh` fresh ones, then the buffered.
    """

    request: TrainRequest
    model: AdaptedModel
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    fresh: TokenTable
    replay: TokenTable
    validation: TokenTable
    parent: Parent | None
    watch: Watch
    validation_fresh: int = 0

    @property
    def classifier(self) -> Classifier:
        """The model, for a strategy that takes no other task type than text-classification."""
        if not isinstance(self.model, Classifier):
            raise TypeError(f"a {self.request.task_type!r} update has no classification head")
        return self.model

    @property
    def labels(self) -> int:
        """Rows of the head; 0 without one."""
        return len(self.request.labels)

    def batch(self, pick: Pick) -> Batch:
        """The picked fresh and replayed rows, collated for training on the device.

        A language model's rows share sequences on a GPU. On a CPU, where rows of like length stand in a batch
        anyway, the mask that keeps them apart costs more than the padding it saves.
        """
        if self.fresh.answers is None:
            return collate(self.fresh, self.replay, pick).to(self.device)
        return pack(self.fresh, self.replay, pick, packed=self.device.type != "cpu").to(self.device)

    def predictions(self, pick: Pick) -> int:
        """How many predictions a loss averages over: rows, or a language model's answer tokens."""
        if self.fresh.answers is None:
            return len(pick.fresh) + len(pick.replay)
        return self.fresh.answer_count(pick.fresh) + self.replay.answer_count(pick.replay)

    def example_ids(self, pick: Pick) -> list[int]:
        """The ids of the picked examples, fresh ones first."""
        return [*self.fresh.ids[pick.fresh].tolist(), *self.replay.ids[pick.replay].tolist()]

    def batches_of(self, table: TokenTable, *, batch_size: int, phase: str) -> Iterator[Batch]:
        """Go once through `table` in length order, each row on its own, reporting and obeying between batches."""
        for number, pick in enumerate(in_length_order(table, batch_size)):
            self.watch.at(phase, number * batch_size, len(table))
            if table.answers is None:
                yield collate(table, table, pick).to(self.device)
            else:
                yield pack(table, table, pick, packed=False).to(self.device)
