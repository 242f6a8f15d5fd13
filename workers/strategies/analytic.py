"""A closed-form head on frozen features: ridge regression from sums that updates only ever add to.

With x = (f, 1) the normalised features of a row and its bias, y the one-hot vector of its label, an update adds
its rows to

    G = Σ x xᵀ  [d+1, d+1]        C = Σ x yᵀ  [d+1, labels]

in float64. The head is the ridge solution over every row ever added, with the bias left unpenalised:

    W = (G_ff − s sᵀ/n + λI)⁻¹ (C_f − s cᵀ/n),    b = (c − Wᵀ s) / n,

where s = Σ f, c = rows per label and n all stand in the last rows of G and C. Sums do not care for order, so the
head is that of training on all rows at once, in whatever order or portions the tasks came. New labels are
new zero columns of C. The adapter is the parent's, bit for bit, and no optimiser step is taken.

λ = `ridge`, or with 0 whatever minimises generalised cross-validation, n·RSS/(n − df)², over a grid in units of the mean
eigenvalue. RSS and df follow from G and C alone, so this choice does not depend on order either.
The head is multiplied by 1/σ², σ² that very estimate of the squared error on a new row, per output: were rows of label k
scattered about e_k alike in every direction, softmax(Wᵀx/σ²) would be the posterior. No prediction changes. Confidences
are then comparable within a version, yet too high where labels overlap unevenly (with the noise variance for σ²: 0.92 on average
at an accuracy of 0.63 on 20 Newsgroups).

Source: ACIL, Zhuang et al. 2022 (arXiv 2205.14922, theorem 1: the recursive head equals the joint one); sums instead of the
recursion as in RanPAC, McDonnell et al. 2023 (arXiv 2307.02251, eq. 5), without its random projection, which the
version's plain linear head has no room for. GCV: Golub, Heath & Wahba 1979, eq. 1.2.
Defaults: λ by GCV: on 20 Newsgroups with MiniLM within two points of the best λ on the test split at 10 rows per label
(55.8 to 58.0 %), within half a point at 60 (63.2 to 63.6 %).
Wins: many small updates with new labels where no buffer may be kept, and wherever seconds count. Nothing is forgotten.
Costs: one forward per fresh row; state of 8·(d+1)·(d+1+labels) bytes and 8 per row (its id). Features do not adapt:
where the base sees no difference between two labels, neither will the head. Labels weigh by their rows.
Limits: a row is counted once by its id, so relearning adds nothing; but rows corrected or erased since stay in the
sums of the versions that learnt them. The state belongs to the features it was summed from (a hash of adapter,
maximum length and scale says which). A parent without it has its sums rebuilt from the replay buffer, which counts old
labels by their buffered rows only; without a buffer that is an error.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from workers.strategies import base
from workers.training.adapters import Adapter, detach
from workers.training.batches import Batch, TokenTable
from workers.training.classifier import ClassificationHead
from workers.training.errors import TrainingFailed
from workers.training.model import AdaptedModel
from workers.training.run import Run

RIDGE_GRID = tuple(10 ** (step / 10) for step in range(-40, 21))
"""Candidates for λ in units of the mean eigenvalue of the centred Gram matrix."""

SHAPING_OPTIONS = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "oft_block_size",
)  # fmt: skip
"""What, beside its tensors, an adapter's effect depends on."""

LARGEST_SCALE = 1000.0
"""Bound on 1/σ²: rows that are fitted without any error would otherwise make the logits infinite."""


class Params(base.Params):
    """Parameters of `analytic`."""

    ridge: float = Field(
        default=0.0, ge=0.0, le=1e9, description="λ; 0 has generalised cross-validation choose it"
    )


class Analytic(base.Strategy):
    """Solve for the head over every row learnt so far; leave the adapter alone."""

    name = "analytic"
    adapter_types = ("lora", "dora", "oft")
    summary = "Closed-form ridge head on frozen features: forgets nothing, takes seconds, adapts no features"
    needs_replay = True
    trains = False
    seeded = False
    probes = False
    params_type = Params
    params: Params

    def start(self, run: Run) -> None:
        """Take the parent's sums, or rebuild them from the buffer where it left none for these features.

        Raises:
            TrainingFailed: `strategy_state_missing` when there is neither.
        """
        self.key = features_key(run, detach(run.model.encoder))
        self.sums = Sums.empty(run.classifier.head.weight.shape[1], run.labels)
        if run.parent is None:
            return
        saved = run.parent.state
        if saved is not None and torch.equal(saved["features"], self.key):
            self.sums = Sums.of(saved).grown(run.labels)
            return
        if len(run.replay) == 0:
            raise TrainingFailed(
                "strategy_state_missing",
                "the parent left no sums of 'analytic' for its present features (it was trained by another strategy, or "
                "with another max_length) and there are no buffered examples to rebuild them from; train with another "
                "strategy or from another parent",
            )
        self.sums = with_rows(self.sums, run, run.replay, phase="preparing")

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """There is none: the head is solved for."""
        raise NotImplementedError("'analytic' takes no optimiser steps")

    def combine(self, run: Run, trained: Adapter) -> tuple[Adapter, float]:
        """Add the fresh rows, solve for the head, and return the adapter as it came."""
        self.sums = with_rows(self.sums, run, run.fresh, phase="consolidating")
        write_head(run.classifier.head, solve(self.sums, self.params.ridge))
        return trained, 0.0

    def finish(self, run: Run) -> dict[str, Tensor]:
        """Return the sums over every row counted so far, and which features they are sums of."""
        return {
            "gram": self.sums.gram, "cross": self.sums.cross, "ids": self.sums.ids, "features": self.key,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sums:
    """G [d+1, d+1], C [d+1, labels] (float64) and the ids [rows] of the rows in them, ascending."""

    gram: Tensor
    cross: Tensor
    ids: Tensor

    @classmethod
    def empty(cls, width: int, labels: int) -> "Sums":
        """The sums over no rows."""
        gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        return cls(gram, gram.new_zeros(width + 1, labels), torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Sums":
        """The sums that an earlier version left."""
        return cls(state["gram"], state["cross"], state["ids"])

    def grown(self, labels: int) -> "Sums":
        """The same sums with a zero column for every label added."""
        added = labels - self.cross.shape[1]
        return Sums(self.gram, functional.pad(self.cross, (0, added)), self.ids)

    def plus(self, features: Tensor, labels: Tensor, ids: Tensor) -> "Sums":
        """Add rows: normalised features [rows, d], label indices [rows], ids [rows] not yet counted."""
        x = functional.pad(features.double(), (0, 1), value=1.0)
        y = functional.one_hot(labels, self.cross.shape[1]).double()
        known = torch.cat([self.ids, ids]).sort().values
        return Sums(self.gram + x.T @ x, self.cross + x.T @ y, known)


@dataclass(frozen=True, slots=True)
class Solution:
    """A ridge solution in float64: `weight` [labels, d], `bias` [labels], its λ and what to multiply logits by."""

    weight: Tensor
    bias: Tensor
    ridge: float
    scale: float


def features_key(run: Run, adapter: Adapter) -> Tensor:
    """A SHA-256 [32 bytes] of what features depend on beside the base: adapter, maximum length, scale."""
    options = {key: adapter.config.get(key) for key in SHAPING_OPTIONS}
    facts = {**options, "max_length": run.request.settings.max_length, "scale": run.classifier.head.scale}
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(adapter.tensors):
        total.update(name.encode() + adapter.tensors[name].numpy().tobytes())
    return torch.tensor(list(total.digest()), dtype=torch.uint8)


@torch.no_grad()
def with_rows(sums: Sums, run: Run, table: TokenTable, *, phase: str) -> Sums:
    """Add the rows of `table` that `sums` has not counted, by one float32 forward each, without dropout.

    Raises:
        TrainingFailed: `non_finite_features`.
    """
    new = np.flatnonzero(~np.isin(table.ids, sums.ids.numpy()))
    settings, was_training = run.request.settings, run.model.training
    run.model.eval()
    for batch in run.batches_of(table.take(new), batch_size=settings.evaluation_batch_size, phase=phase):
        features = run.classifier.head.normalise(
            run.classifier.features(batch.input_ids, batch.attention_mask)
        ).cpu()
        if not features.isfinite().all():
            raise TrainingFailed(
                "non_finite_features", f"the base gives no finite features for rows {batch.ids[:20]}"
            )
        sums = sums.plus(features, batch.labels.cpu(), torch.tensor(batch.ids))
    run.model.train(was_training)
    return sums


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The centred problem in the eigenvectors of its Gram matrix: every λ is then a matter of divisions."""

    eigenvalues: Tensor
    vectors: Tensor
    projected: Tensor
    spread: Tensor
    rows: Tensor

    @classmethod
    def of(cls, sums: Sums) -> "Spectrum":
        """Centre the sums and decompose."""
        rows, total, counts = sums.gram[-1, -1], sums.gram[-1, :-1], sums.cross[-1]
        eigenvalues, vectors = torch.linalg.eigh(sums.gram[:-1, :-1] - torch.outer(total, total) / rows)
        projected = vectors.T @ (sums.cross[:-1] - torch.outer(total, counts) / rows)
        spread = (counts - counts.square() / rows).sum()
        return cls(eigenvalues.clamp(min=0.0), vectors, projected, spread, rows)

    def residual(self, ridge: float) -> float:
        """RSS(λ) = ‖Y‖² − Σ u²(e + 2λ)/(e + λ)², with e the eigenvalues, u = VᵀC and Y centred."""
        share = (self.eigenvalues + 2 * ridge) / (self.eigenvalues + ridge).square()
        return max(0.0, float(self.spread - (self.projected.square().sum(1) * share).sum()))

    def free(self, ridge: float) -> float:
        """n − df(λ) = n − 1 − Σ e/(e + λ): the degrees of freedom that the fit leaves."""
        return max(1e-9, float(self.rows - 1 - (self.eigenvalues / (self.eigenvalues + ridge)).sum()))

    def predicted_error(self, ridge: float) -> float:
        """Generalised cross-validation n·RSS/(n − df)²: the squared error to expect on a new row, over all outputs."""
        return float(self.rows) * self.residual(ridge) / self.free(ridge) ** 2

    def best_ridge(self) -> float:
        """The λ on the grid with the least error to expect."""
        unit = max(float(self.eigenvalues.mean()), 1e-12)
        return min((share * unit for share in RIDGE_GRID), key=self.predicted_error)

    def weight(self, ridge: float) -> Tensor:
        """The ridge solution [labels, d]."""
        return (self.vectors @ (self.projected / (self.eigenvalues + ridge)[:, None])).T


def solve(sums: Sums, ridge: float) -> Solution:
    """Solve for the head; `ridge` 0 chooses λ by generalised cross-validation."""
    spectrum = Spectrum.of(sums)
    ridge = ridge or spectrum.best_ridge()
    weight, counts = spectrum.weight(ridge), sums.cross[-1]
    outputs = max(1, int((counts > 0).sum()) - 1)  # they sum to one, so one of them is not free
    variance = spectrum.predicted_error(ridge) / outputs
    bias = (counts - weight @ sums.gram[-1, :-1]) / spectrum.rows
    return Solution(weight, bias, ridge, scale=1.0 / max(variance, 1.0 / LARGEST_SCALE))


@torch.no_grad()
def write_head(head: ClassificationHead, solution: Solution) -> None:
    """Put a solution into the head, scaled."""
    head.weight.copy_(solution.scale * solution.weight)
    head.bias.copy_(solution.scale * solution.bias)
