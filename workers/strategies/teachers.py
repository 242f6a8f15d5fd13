"""What the parent says of an update's rows: the targets of distillation.

Both teachers are made in `start`, where the model still is the parent; neither ever takes a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from workers.training.batches import Batch, TokenTable
from workers.training.model import AdaptedModel
from workers.training.run import Run


class Teacher(Protocol):
    """Answers for the parent."""

    def logits(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """The parent's logits [n, classes it knows] on `batch`, without gradient and without dropout."""


@contextmanager
def at_inference(model: AdaptedModel) -> Iterator[None]:
    """Switch dropout off and gradients too while the context lasts; the model's mode comes back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def row_logits(run: Run, table: TokenTable, *, labels: int) -> Tensor:
    """The model's logits [rows, labels] for the head's first `labels`, in the order of `table`."""
    position = positions(table)
    logits = torch.zeros(len(table), labels, device=run.device)
    size = run.request.settings.evaluation_batch_size
    with at_inference(run.model):
        for batch in run.batches_of(table, batch_size=size, phase="preparing"):
            with run.autocast():
                answers = run.model(batch)[:, :labels]
            logits[[position[id_] for id_ in batch.ids]] = answers.float()
    return logits


def positions(table: TokenTable) -> dict[int, int]:
    """Where each example id stands in `table`."""
    return {int(id_): index for index, id_ in enumerate(table.ids)}


class StoredTeacher:
    """The parent's logits on every row of the update, computed once: one forward per row, whatever the epochs."""

    def __init__(self, run: Run, *, labels: int) -> None:
        parts = [row_logits(run, table, labels=labels) for table in (run.fresh, run.replay)]
        self.stored = torch.cat(parts)
        self.fresh = positions(run.fresh)
        self.replay = {id_: len(run.fresh) + index for id_, index in positions(run.replay).items()}

    def logits(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """The parent's logits [rows, labels] on `batch`."""
        # An id may be fresh and buffered at once (a row learnt again); both look-ups are made without asking the
        # device which rows of the batch are replayed.
        fresh = torch.tensor([self.fresh.get(id_, 0) for id_ in batch.ids], device=self.stored.device)
        replay = torch.tensor([self.replay.get(id_, 0) for id_ in batch.ids], device=self.stored.device)
        return self.stored[torch.where(batch.replayed, replay, fresh)]


class LiveTeacher:
    """The parent itself, run beside the model on each batch: for outputs too large to store.

    Only the trainable parameters are copied; the frozen base is shared.
    """

    def __init__(self, model: AdaptedModel) -> None:
        self.parameters = {name: value.detach().clone() for name, value in model.trainable().items()}

    def logits(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """The parent's logits [n, classes] on `batch`."""
        with at_inference(model):
            logits: Tensor = functional_call(model, self.parameters, (batch,))
        return logits
