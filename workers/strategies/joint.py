"""Joint training: start again from the base model with every row the lineage has learnt.

Loss: cross-entropy over all labels, on all rows of all tasks at once. Nothing can be forgotten because nothing
is learnt in turns.

Source: the "joint" or "offline" upper bound, e.g. van de Ven & Tolias 2019 (arXiv 1904.07734).
Wins: always, on average accuracy; take it when the rows are all still there and the time does not matter.
Costs: every update pays for the whole history, so n updates of equal size cost n(n+1)/2 times the first.
The caller sends every learnt row as fresh (`uses = {"all_rows"}`); a parent only gives the order of the labels.
"""

from torch import Tensor
from torch.nn import functional

from workers.strategies.base import ALL_TASK_TYPES, Strategy
from workers.training.batches import Batch
from workers.training.model import AdaptedModel


class Joint(Strategy):
    """Retrain from the base on every row of every task."""

    name = "joint"
    summary = (
        "Retrain from the base model on all examples: the upper bound, at the price of the whole history"
    )
    adapter_types = ("lora", "dora", "oft")
    task_types = ALL_TASK_TYPES
    many_devices = True
    starts_from = "base"
    probes = False  # its first steps leave the base, not the parent
    uses = frozenset({"all_rows"})

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy over the batch."""
        return functional.cross_entropy(model(batch), batch.labels)
