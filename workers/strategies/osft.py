"""OSFT: the strongest singular directions of every adapted weight stay exactly as they are.

Let W = base + the parent's ΔW be an adapted layer's weight, and U_k, V_k its k leading left and right singular
vectors. Each update trains a fresh adapter ΔW = s·B·A over the frozen W under

    U_kᵀ B = 0   and   A V_k = 0,   so that   U_kᵀ ΔW = 0   and   ΔW V_k = 0.

What W does along its leading directions, which carry what it has learnt, is then untouched: (W + ΔW) V_k = W V_k.
Gradients are projected before the step, and the parameters after it: Adam divides every entry of a gradient by a scale
of its own, which turns a projected gradient out of the subspace again. A starts in the complement.

Source: Nayak et al. 2025 (arXiv 2504.07097), section 3: SVD of the current weight, gradients of the small singular
factors projected off the large ones. There the small factors themselves are trained at full rank; here they
are reached through a low-rank adapter, so that the version stays one PEFT adapter. The paper shares the protected
directions out by a layer's importance; here every layer keeps the same share.
Defaults: half of the directions, as PEFT's own OSF tuner. The protection holds from the first update on: the base
model's knowledge is protected like a task's. No replay, as in the paper; `fraction` mixes buffered
rows in, with the correction for unequal label shares that `replay` makes.
Wins: where the base model's general ability must survive narrow updates, and no old row may be kept. It protects
weights, not the head: with new labels in every update the head forgets nearly as under `sequential`.
Costs: one SVD per adapted layer and update, four thin matrix products per layer and step. The rank grows by r per
update until `adapter.max_rank`, then is compressed, from where on the directions are protected up to the recorded error.
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from workers.strategies import base, rehearsal
from workers.strategies.rehearsal import offsets_if_mixed
from workers.training.adapters import adapted_layers
from workers.training.batches import Batch
from workers.training.model import AdaptedModel
from workers.training.run import Run


class Params(rehearsal.Params):
    """Parameters of `osft`."""

    preserved: float = Field(
        default=0.5,
        ge=0.0,
        le=0.95,
        description="share of each layer's singular directions that is protected",
    )
    fraction: float = rehearsal.share(0.0)


class Osft(rehearsal.Rehearsing):
    """Train a fresh adapter in the orthogonal complement of the weights' leading singular directions."""

    name = "osft"
    task_types = base.ALL_TASK_TYPES
    summary = "Leave the leading singular directions of the weights untouched (OSFT); keeps no old examples"
    adapter = "added"
    params_type = Params
    params: Params

    @torch.no_grad()
    def start(self, run: Run) -> None:
        """Decompose the merged weights, and move the new adapter's start into the complement."""
        self.offsets = offsets_if_mixed(run, self.params.fraction)
        self.protected: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in adapted_layers(run.model.encoder).items():
            run.watch.obey()
            self.protected[name] = leading_directions(layer.get_base_layer().weight, self.params.preserved)
        self.adjust_step(run.model)

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy over the batch."""
        return functional.cross_entropy(model(batch) + self.offsets, batch.labels)

    def adjust_gradients(self, model: AdaptedModel) -> None:
        """Project the gradients of A and B, so that clipping measures the step that counts."""
        for a, b, u, v in self.factors(model):
            if a.grad is not None:
                a.grad.copy_(off_rows(a.grad, v))
            if b.grad is not None:
                b.grad.copy_(off_columns(b.grad, u))

    @torch.no_grad()
    def adjust_step(self, model: AdaptedModel) -> None:
        """Project A and B themselves."""
        for a, b, u, v in self.factors(model):
            a.copy_(off_rows(a, v))
            b.copy_(off_columns(b, u))

    def factors(self, model: AdaptedModel) -> Iterator[tuple[nn.Parameter, nn.Parameter, Tensor, Tensor]]:
        """Yield A [r, in], B [out, r], U_k [out, k] and V_k [in, k] of each adapted layer."""
        for name, layer in adapted_layers(model.encoder).items():
            u, v = self.protected[name]
            yield layer.lora_A["default"].weight, layer.lora_B["default"].weight, u, v


def leading_directions(weight: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """U_k [out, k] and V_k [in, k] of `weight` [out, in] in float32, k being `share` of its singular directions."""
    u, _, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    k = round(share * min(weight.shape))
    return u[:, :k].contiguous(), vh[:k].T.contiguous()


def off_rows(a: Tensor, v: Tensor) -> Tensor:
    """A − A V Vᵀ: the rows' parts along the protected inputs taken away."""
    return a - (a @ v) @ v.T


def off_columns(b: Tensor, u: Tensor) -> Tensor:
    """B − U Uᵀ B: the columns' parts along the protected outputs taken away."""
    return b - u @ (u.T @ b)
