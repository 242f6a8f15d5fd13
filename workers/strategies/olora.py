"""O-LoRA: each update learns in a subspace of the inputs that is orthogonal to those of the updates before.

Each update trains a fresh adapter over the frozen parent. With V_l the orthonormal rows that span the row space of
the parent's ΔW in layer l, and A_l the new adapter's down-projection,

    L = CE + λ · Σ_l ‖V_l A_lᵀ‖²_F / Σ_l (entries of V_l A_lᵀ).

Inputs that the parent's adapter reacted to then pass the new one by, and what it computed of them stays. The paper
penalises Σ ‖A_i A_tᵀ‖² over the stored A_i of all earlier tasks. Their span is that of the parent's single adapter here,
also after it has been compressed; its orthonormal basis makes the penalty independent of how an earlier update's
scale was divided between A and B, and the division by the number of entries makes λ mean the same at every rank,
number of layers and age of the lineage.

Source: Wang et al. 2023 (arXiv 2310.14152), equations 8 and 9.
Defaults: λ = 10. Measured on one update of 16 steps on MiniLM (four newsgroups after four others): the overlap of
9.2e-4 that λ = 0 ends with falls to 1.3e-4 under λ = 10 and 0.6e-4 under λ = 1000, with a final loss of 0.34, 0.34 and
0.47; λ = 100 000 leaves 0.6e-4 too, and its gradients crowd the task's out under clipping. No replay, as in the paper;
`fraction` mixes buffered rows in, with the correction for unequal label shares that `replay` makes.
Wins: domain-incremental streams of unlike domains where no old row may be kept and ranks are to spare. It cannot tell
new labels from old ones without old rows: with new labels in every update the head forgets nearly as under `sequential`.
Costs: one thin matrix product per layer and step. The rank grows by r per update until `adapter.max_rank`, then is
compressed. No state beside the adapter.
"""

from collections.abc import Mapping

import torch
from pydantic import Field, JsonValue
from torch import Tensor
from torch.nn import functional

from workers.strategies import base, rehearsal
from workers.strategies.rehearsal import offsets_if_mixed
from workers.training.adapters import Adapter, adapted_layers
from workers.training.algebra import row_spaces
from workers.training.batches import Batch
from workers.training.model import AdaptedModel
from workers.training.run import Run


class Params(rehearsal.Params):
    """Parameters of `olora`."""

    strength: float = Field(
        default=10.0, ge=0.0, le=1e9, description="λ, per entry of the overlap with earlier subspaces"
    )
    fraction: float = rehearsal.share(0.0)


class Olora(rehearsal.Rehearsing):
    """Train a fresh adapter whose input subspace is pushed away from the parent's."""

    name = "olora"
    task_types = base.ALL_TASK_TYPES
    summary = "Learn in a subspace orthogonal to those of earlier updates (O-LoRA); keeps no old examples"
    adapter = "added"
    params_type = Params
    params: Params

    def start(self, run: Run) -> None:
        """Find the row spaces of the parent's adapter; without a parent there is nothing to keep clear of."""
        self.offsets = offsets_if_mixed(run, self.params.fraction)
        self.device = run.device
        spaces = {} if run.parent is None else row_spaces(run.parent.adapter)
        self.previous = {name: space.to(run.device) for name, space in spaces.items()}

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy plus the penalty."""
        return functional.cross_entropy(
            model(batch) + self.offsets, batch.labels
        ) + self.params.strength * self.overlap(model)

    def overlap(self, model: AdaptedModel) -> Tensor:
        """The mean squared entry of V Aᵀ over all layers."""
        total, entries = torch.zeros((), device=self.device), 0
        if self.previous:
            for name, layer in adapted_layers(model.encoder).items():
                product = self.previous[name] @ layer.lora_A["default"].weight.T
                total, entries = total + product.square().sum(), entries + product.numel()
        return total / max(1, entries)

    def combine(self, run: Run, trained: Adapter) -> tuple[Adapter, float]:
        """Add the new adapter to the parent's, and note how far apart they ended."""
        with torch.no_grad():
            self.reached = float(self.overlap(run.model))
        return super().combine(run, trained)

    def record(self) -> Mapping[str, JsonValue]:
        """The mean squared entry of the overlap that training ended with."""
        return {"overlap": self.reached}
