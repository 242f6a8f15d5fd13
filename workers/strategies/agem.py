"""A-GEM: a step on the fresh rows that must not raise, to first order, the loss on a sample of the buffer.

With g the gradient of the fresh rows' loss and g_ref that of the replayed rows of the same batch,

    g̃ = g − (gᵀg_ref / g_refᵀg_ref) · g_ref   where gᵀg_ref < 0, else g.

That holds for plain gradient descent. Adam rescales every entry by its own history, and g_refᵀΔθ may come out positive
for a projected g̃ all the same. The step itself is therefore projected as well: with Δθ what the optimiser
changed (momentum and weight decay included),

    Δθ ← Δθ − (g_refᵀΔθ / g_refᵀg_ref) · g_ref   where g_refᵀΔθ > 0.

Source: Chaudhry et al. 2019 (arXiv 1812.00420, eq. 11); the projection of the step is ours.
Defaults: half of each batch is the reference. The paper's reference is a buffer sample as large as fits (256 rows
beside 10 fresh ones); a larger `fraction` makes g_ref less noisy.
Wins: little; a buffered row teaches more when it is trained on (`replay`). Take it where old labels must
not be fitted any closer, only kept from getting worse.
Costs: as `replay` at the same fraction, plus a second backward through the same forward, and a copy of the
trainable parameters and of their gradient. Without a buffer it is `sequential`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from workers.strategies import base, rehearsal
from workers.strategies.losses import mean_over
from workers.training.batches import Batch
from workers.training.model import AdaptedModel
from workers.training.run import Run


class Params(rehearsal.Params):
    """Parameters of `agem`."""


class Agem(rehearsal.Rehearsing):
    """Project gradients and steps so that the loss on buffered rows does not rise to first order."""

    name = "agem"
    adapter_types = ("lora", "dora", "oft")
    summary = "Train on new examples alone, never along a direction that raises the loss on buffered ones"
    task_types = base.ALL_TASK_TYPES
    params_type = Params
    params: Params

    def start(self, run: Run) -> None:
        """Begin without a reference."""
        self.reference: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy of the fresh rows; the replayed rows' gradient goes to the reference."""
        each = functional.cross_entropy(model(batch), batch.labels, reduction="none")
        self.add_reference(model, mean_over(each, batch.replayed))
        return mean_over(each, ~batch.replayed)

    def add_reference(self, model: AdaptedModel, loss: Tensor) -> None:
        """Add the gradient of `loss` to the step's reference: passes accumulate, and its scale does not matter."""
        parameters = model.trainable()
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            held = self.reference.get(name)
            self.reference[name] = gradient if held is None else held + gradient

    def adjust_gradients(self, model: AdaptedModel) -> None:
        """Take the part of the gradient out that points against the reference."""
        parameters = model.trainable()
        gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
        remove_conflict(gradients, self.reference, sign=-1.0)
        self.before = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def adjust_step(self, model: AdaptedModel) -> None:
        """Take the part of the step out that climbs along the reference."""
        parameters = model.trainable()
        step = {name: value.detach() - self.before[name] for name, value in parameters.items()}
        remove_conflict(step, self.reference, sign=1.0)
        for name, value in parameters.items():
            value.copy_(self.before[name] + step[name])
        self.reference = {}


@torch.no_grad()
def remove_conflict(vector: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, sign: float) -> None:
    """Project `vector` in place onto the complement of `reference` where sign · (their product) is positive."""
    product = torch.stack([(vector[name] * reference[name]).sum() for name in vector]).sum()
    square = torch.stack([reference[name].square().sum() for name in vector]).sum()
    conflict = sign * product > 0
    share = torch.where(conflict, product / square.clamp(min=torch.finfo(square.dtype).tiny), 0.0)
    for name, value in vector.items():
        value.sub_(share * reference[name])
