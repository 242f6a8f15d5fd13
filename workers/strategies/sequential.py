"""Sequential fine-tuning: go on training the parent's adapter on the new rows alone.

Loss: cross-entropy over all labels known so far,

    L = −(1/n) Σ log softmax(z(x))_y.

Source: the "fine-tuning" lower bound of the continual-learning literature, e.g. van de Ven & Tolias 2019
(arXiv 1904.07734), tables 4 and 5.
Wins: never on retention. It is the baseline that the others are measured against, and the cheapest; it is
right where old tasks need not be kept or where fresh rows already cover them.
Costs: one forward and backward per fresh row. No state, no buffer.
"""

from torch import Tensor
from torch.nn import functional

from workers.strategies.base import ALL_TASK_TYPES, Strategy
from workers.training.batches import Batch
from workers.training.model import AdaptedModel


class Sequential(Strategy):
    """Fine-tune the parent's adapter on fresh rows alone."""

    name = "sequential"
    task_types = ALL_TASK_TYPES
    summary = "Fine-tune on the new examples alone: the baseline that forgets"
    adapter_types = ("lora", "dora", "oft")
    many_devices = True

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy over the batch."""
        return functional.cross_entropy(model(batch), batch.labels)
