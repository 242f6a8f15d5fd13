"""Merging: train freely, then go back part of the way to the parent, as far as held-out rows say.

Each update trains a fresh adapter over the frozen parent, without any constraint. Then

    ΔW = (1 − β)·ΔW_parent + β·ΔW_child,

which is ΔW_parent + β·s·B·A, since the child is the parent plus its fresh adapter: exact, by concatenation. The old
labels' rows of the head go back along with it; new labels have no row in the parent, theirs stay the child's. β is
the point of a grid over [0, 1] with the lowest cross-entropy on rows held out of training; of equals, the smallest, which
is the nearest to the parent. Held-out fresh rows speak for the new, held-out buffered rows for the old: the mean is over
the labels of each of the two, so that every label of either has one vote.

Source: interpolation in weight space for patching, Ilharco et al. 2022 (arXiv 2208.05592, eq. 1; β by a grid on held-out
data, section 2), and Wortsman et al. 2022 (arXiv 2109.01903). In ΔW, not in A and B entry by entry: that would mix
the factors of different products (see `algebra.average`).
Defaults: half of the mix is replayed, as in `replay`. Measured on two updates of four newsgroups each, 24 rows per label,
on MiniLM: trained on fresh rows alone, the chosen β lifts the average accuracy from 60 and 46 % (β = 1) to 81 and 68 %
(two seeds), with nearly all of it owed to the head's old rows, which is why they go back too. Trained with replay the
child itself was best and β = 1 was chosen: merging makes up for missing replay, it does not improve on it.
Wins: where an update is much smaller or narrower than what came before it, and some old rows are kept to measure on.
Costs: forwards only over the held-out rows, once per grid point: about half an epoch in all. Held-out rows are not trained
on. The rank grows by r per update until `adapter.max_rank`, then is compressed.
Without a parent it is plain training. Without buffered rows, or with too few to hold any out, nothing says how much is
forgotten, and β is `unmeasured`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from pydantic import Field, JsonValue
from torch import Tensor
from torch.nn import functional

from workers.strategies import base, rehearsal
from workers.strategies.rehearsal import offsets_if_mixed
from workers.training.adapters import Adapter, adapted_layers
from workers.training.algebra import compress, concatenate, scaled
from workers.training.batches import Batch, TokenTable
from workers.training.classifier import ClassificationHead
from workers.training.model import AdaptedModel
from workers.training.run import Run


class Params(rehearsal.Params):
    """Parameters of `merge`."""

    validation: float = Field(
        default=0.1, ge=0.01, le=0.5, description="share of fresh and buffered rows held out to choose β on"
    )
    grid: int = Field(default=10, ge=1, le=100, description="steps between β = 0 and β = 1 that are tried")
    unmeasured: float = Field(
        default=0.5, ge=0.0, le=1.0, description="β where there are no buffered rows to measure it on"
    )


class Merge(rehearsal.Rehearsing):
    """Interpolate between the parent and a freely trained child, at the point that held-out rows choose."""

    name = "merge"
    task_types = base.ALL_TASK_TYPES
    summary = "Train freely, then interpolate between parent and child as held-out examples of both choose"
    adapter = "added"
    validates_parent = True
    params_type = Params
    params: Params

    @property
    def validation_fraction(self) -> float:
        """Share of fresh and of buffered rows held out of training."""
        return self.params.validation

    def start(self, run: Run) -> None:
        """Work out the labels' shares of the mix."""
        self.offsets = offsets_if_mixed(run, self.params.fraction)
        self.chosen: dict[str, JsonValue] = {}

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy over the batch, its logits shifted where rows are replayed."""
        return functional.cross_entropy(model(batch) + self.offsets, batch.labels)

    def combine(self, run: Run, trained: Adapter) -> tuple[Adapter, float]:
        """Go to the chosen point between parent and child, adapter and head."""
        if run.parent is None:
            return trained, 0.0
        weight = self.choose(run, run.parent.head)
        with torch.no_grad():
            interpolate_head(run.model.head, run.parent.head, weight)
        merged = concatenate(run.parent.adapter, scaled(trained, weight))
        return compress(merged, run.request.adapter.max_rank)

    def choose(self, run: Run, old: ClassificationHead | None) -> float:
        """Return β and note why: the grid's losses where there are old rows to measure on."""
        fresh, buffered = held_out(run)
        if len(fresh) == 0 or len(buffered) == 0:
            self.chosen = {"beta": self.params.unmeasured, "measured": False}
            return self.params.unmeasured
        losses: dict[float, float] = {}
        for weight in (step / self.params.grid for step in range(self.params.grid + 1)):
            with moved_to(run.model, old, weight):
                losses[weight] = balanced_loss(run, (fresh, buffered))
        best = min(losses, key=lambda weight: (losses[weight], weight))
        self.chosen = {
            "beta": best,
            "measured": True,
            "rows": {"fresh": len(fresh), "replay": len(buffered)},
            "losses": [[weight, loss] for weight, loss in losses.items()],
        }
        return best

    def record(self) -> Mapping[str, JsonValue]:
        """β, whether it was measured, and the loss at every point of the grid."""
        return self.chosen


def held_out(run: Run) -> tuple[TokenTable, TokenTable]:
    """The rows held out of training: fresh ones, and buffered ones."""
    rows = np.arange(len(run.validation))
    return run.validation.take(rows[: run.validation_fresh]), run.validation.take(
        rows[run.validation_fresh :]
    )


@contextmanager
def moved_to(model: AdaptedModel, old: ClassificationHead | None, weight: float) -> Iterator[None]:
    """Put the model `weight` of the way from parent to child while the context lasts."""
    layers = list(adapted_layers(model.encoder).values())
    scalings = [layer.scaling["default"] for layer in layers]
    head = {name: tensor.detach().clone() for name, tensor in model.head_parameters().items()}
    try:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling["default"] = weight * scaling
        with torch.no_grad():
            interpolate_head(model.head, old, weight)
        yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling["default"] = scaling
        with torch.no_grad():
            for name, parameter in model.head_parameters().items():
                parameter.copy_(head[name])


def interpolate_head(head: ClassificationHead | None, old: ClassificationHead | None, weight: float) -> None:
    """Move the rows that `old` has to `(1 − weight)·old + weight·head`, in place; rows of new labels stay."""
    if head is None or old is None:
        return
    for name, parameter in head.named_parameters():
        start = old.get_parameter(name).to(parameter.device)
        # Written so that both ends are exact.
        parameter[: len(start)] = (1 - weight) * start + weight * parameter[: len(start)]


@torch.no_grad()
def balanced_loss(run: Run, tables: tuple[TokenTable, ...]) -> float:
    """Cross-entropy averaged over rows of one label of one table, then over all of these.

    Without a head there are no labels: the mean is over the answer tokens of each table, then over the tables.
    """
    was_training = run.model.training
    run.model.eval()
    means: list[float] = []
    for table in tables:
        losses, labels = [], []
        for batch in run.batches_of(
            table, batch_size=run.request.settings.evaluation_batch_size, phase="consolidating"
        ):
            with run.autocast():
                logits = run.model(batch)
            losses.append(functional.cross_entropy(logits.float(), batch.labels, reduction="none").cpu())
            labels.append(batch.labels.cpu() if run.model.head is not None else torch.zeros(len(logits)))
        every, label = torch.cat(losses or [torch.zeros(0)]), torch.cat(labels or [torch.zeros(0)])
        means.extend(float(every[label == one].mean()) for one in sorted(set(label.tolist())))
    run.model.train(was_training)
    return sum(means) / len(means)
