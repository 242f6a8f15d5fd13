"""Online EWC on the weight change itself: ΔW = s·B·A is held back where the old tasks are sensitive.

Each update trains a fresh adapter over the frozen parent; with Ω the accumulated diagonal Fisher information
of the adapted weights,

    L = CE(fresh) + (λ/2) · [ Σ_layers Σ_ij Ω_ij (s·B·A)_ij²  +  Σ_old rows Ω_head (θ − θ_parent)² ].

A penalty on A and B apart is a different thing: their product can move while neither does much, and a drift of
both that leaves B·A alone is harmless. For one example the gradient of W is Σ_t g_t x_tᵀ over its tokens; Fisher
squares that per example, then averages. The square of a batch's mean gradient is not Fisher (it shrinks with
the batch). Labels are drawn from the model's own predictions with a fixed seed, which makes it the true Fisher
rather than the empirical one. After an update

    Ω ← γ·Ω + F(fresh rows at the new parameters).

Source: arXiv 2602.17559 (EWC over the full weight space of a low-rank update); Kirkpatrick et al. 2017
(arXiv 1612.00796, eq. 3); online form by Schwarz et al. 2018 (arXiv 1805.06370, eq. 9).
Defaults: λ is a pure number. ½·ΔᵀFΔ is KL(parent ‖ new) per old example in nats, as the cross-entropy is, whatever the
number of rows, the batch size or the model; λ = N_old / N_new is the Laplace approximation. The diagonal
underestimates changes of many weights at once, hence a default well above that: on three tasks of permuted digits λ = 30
and λ = 1000 end at 0.95 and 0.93, `sequential` at 0.61. γ = 1.
Wins: domain-incremental streams (same labels, new domains) where no old row may be kept. With new labels in
every update it forgets nearly as `sequential` does: nothing in it compares old labels with new ones.
Costs: one more thin matrix product per layer and step; once per update a forward and backward over
`fisher_rows` rows; state of one float32 per adapted weight. The rank grows by r per update until
`adapter.max_rank`, then is compressed.
The penalty's gradient never reaches the optimiser. Entries of Ω span many powers of ten, so for any λ worth having
some entry overshoots its rate, and Adam mistakes the penalty's large gradients for the data's. Each step is that of
the cross-entropy alone, followed by an implicit one of the penalty in the optimiser's own metric (`proximal`): the
minimum stays that of L, stiff entries go back to the parent, free ones stay free, and λ = 10⁶ is merely slow to learn.
A parent trained by another strategy has no Ω: it is rebuilt from the replay buffer in `start`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from workers.strategies import base
from workers.strategies.proximal import pull_back, pull_product, step_sizes
from workers.training.adapters import adapted_layers, delta_weights
from workers.training.batches import Batch, TokenTable
from workers.training.classifier import ClassificationHead
from workers.training.errors import TrainingFailed
from workers.training.model import AdaptedModel
from workers.training.run import Parent, Run


class Params(base.Params):
    """Parameters of `ewc`."""

    strength: float = Field(
        default=100.0, ge=0.0, le=1e9, description="λ, in units of the mean per-example Fisher"
    )
    decay: float = Field(
        default=1.0, ge=0.0, le=1.0, description="γ, how much of the older Fisher an update keeps"
    )
    fisher_rows: int = Field(
        default=1024, ge=1, le=100_000, description="rows that Fisher is estimated on, at most"
    )


class Ewc(base.Strategy):
    """Train a fresh adapter under a quadratic penalty on its ΔW, weighted by the old tasks' Fisher."""

    name = "ewc"
    summary = (
        "Hold back changes of the weights that old tasks depend on (online EWC on ΔW); keeps no old examples"
    )
    task_types = base.ALL_TASK_TYPES
    many_devices = True
    needs_replay = True
    adapter = "added"
    params_type = Params
    params: Params

    def follow(self, optimiser: Optimizer) -> None:
        """Keep the optimiser at hand for the sizes of its steps."""
        self.optimiser = optimiser

    def start(self, run: Run) -> None:
        """Load the parent's Fisher, or rebuild it from the buffer where the parent left none that fits.

        Raises:
            TrainingFailed: `strategy_state_missing` when there is neither.
        """
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        if run.parent is None:
            return
        saved = run.parent.state
        if saved is None or not fits(saved, run.model, run.parent):
            saved = self.rebuilt(run, run.parent)
        self.fisher = {name: tensor.to(run.device) for name, tensor in saved.items()}
        self.anchor = {
            name: parameter.detach()[: run.parent.labels].clone()
            for name, parameter in run.model.head_parameters().items()
        }

    def rebuilt(self, run: Run, parent: Parent) -> dict[str, Tensor]:
        """Estimate the old tasks' Fisher on the replay buffer, at the parent's parameters."""
        if len(run.replay) == 0:
            raise TrainingFailed(
                "strategy_state_missing",
                "the parent was not trained with 'ewc' under this adapter shape and there are no buffered examples "
                "to rebuild its Fisher information from; train with another strategy or from another parent",
            )
        return estimate(run, run.replay, rows=self.params.fisher_rows, labels=parent.labels)

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy plus the penalty, whose gradient is left to `adjust_step`."""
        with torch.no_grad():
            penalty = self.penalty(model)
        return functional.cross_entropy(model(batch), batch.labels) + penalty

    @torch.no_grad()
    def adjust_step(self, model: AdaptedModel) -> None:
        """Take the penalty's part of the step: proximal, so that no λ and no rate is too large for it."""
        if not self.fisher:
            return
        for name, layer in adapted_layers(model.encoder).items():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            stiffness = self.params.strength * layer.scaling["default"] ** 2 * self.fisher[name]
            pull_product(b, a, stiffness, step_sizes(self.optimiser, b))
            pull_product(a.T, b.T, stiffness.T, step_sizes(self.optimiser, a).T)
        for name, anchor in self.anchor.items():
            parameter = model.get_parameter(name)
            steps = step_sizes(self.optimiser, parameter)[: len(anchor)]
            pull_back(parameter[: len(anchor)], anchor, self.params.strength * self.fisher[name], steps)

    def penalty(self, model: AdaptedModel) -> Tensor:
        """(λ/2) · Σ Ω∘(ΔW)², and the same for the head's old rows."""
        total = torch.zeros((), device=model.adapter_parameters()[0].device)
        if not self.fisher:
            return total
        for name, delta in delta_weights(model.encoder).items():
            total = total + (self.fisher[name] * delta.square()).sum()
        for name, anchor in self.anchor.items():
            moved = model.get_parameter(name)[: len(anchor)] - anchor
            total = total + (self.fisher[name] * moved.square()).sum()
        return self.params.strength / 2 * total

    def finish(self, run: Run) -> dict[str, Tensor]:
        """Return γ·Ω + F, F estimated on the fresh rows at the parameters just reached."""
        state = estimate(run, run.fresh, rows=self.params.fisher_rows, labels=run.labels or None)
        for name, old in self.fisher.items():
            state[name][: len(old)] += self.params.decay * old.cpu()
        return state


def fits(state: Mapping[str, Tensor], model: AdaptedModel, parent: Parent) -> bool:
    """Whether a saved Fisher covers the layers adapted now and the parent's head."""
    wanted = {name: tensor.shape for name, tensor in delta_weights(model.encoder).items()}
    if parent.head is not None:
        wanted |= {f"head.{name}": parameter.shape for name, parameter in parent.head.named_parameters()}
    return wanted == {name: tensor.shape for name, tensor in state.items()}


def estimate(run: Run, table: TokenTable, *, rows: int, labels: int | None) -> dict[str, Tensor]:
    """Estimate the diagonal Fisher information of the adapted weights and of the head's first `labels` rows.

    Labels are drawn from the model's predictions. Rows beyond `rows` are left out by a seeded draw. A language
    model draws every answer token (`labels=None`: from the whole vocabulary), given the ones that stand before it; an
    example's log-likelihood is their sum.

    Returns:
        On the CPU, per adapted layer [out, in], `head.weight` [labels, width] and `head.bias` [labels]: squared
        per-example gradients of the log-likelihood, averaged over examples.
    """
    generator = torch.Generator().manual_seed(run.request.settings.seed)
    table = table.sample(rows, seed=run.request.settings.seed)
    meter = FisherMeter(run.model)
    was_training = run.model.training
    run.model.eval()
    with meter.attached():
        for batch in run.batches_of(table, batch_size=8, phase="consolidating"):
            with torch.autocast(run.device.type, enabled=False):
                logits = run.model(batch)[:, :labels]
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            meter.add(logits, drawn.to(run.device), examples=len(batch.ids))
    run.model.train(was_training)
    return meter.mean()


class FisherMeter:
    """Sums squared per-example gradients of log p(label) over the adapted weights and the head."""

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model
        self.sums: dict[str, Tensor] = {}
        self.examples = 0
        self._inputs: dict[str, Tensor] = {}
        self._features = torch.empty(0)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Listen to the adapted layers' inputs and output gradients while the context lasts."""
        handles = []
        for name, layer in adapted_layers(self.model.encoder).items():
            handles.append(layer.register_forward_hook(self._forward_hook(name)))
        if self.model.head is not None:
            handles.append(self.model.head.register_forward_pre_hook(self._keep_features))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward_hook(self, name: str) -> Any:
        def keep(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._inputs[name] = inputs[0].detach().float()
            output.register_hook(lambda gradient: self._accumulate(name, gradient))  # type: ignore[no-untyped-call]  # torch leaves it untyped

        return keep

    def _accumulate(self, name: str, gradient: Tensor) -> None:
        # One example's gradient of W is the sum over its tokens, so the square comes after the contraction.
        per_example = torch.einsum("nto,nti->noi", gradient.detach().float(), self._inputs[name])
        self._sum(name, per_example.square().sum(0))

    def _keep_features(self, head: ClassificationHead, inputs: tuple[Tensor, ...]) -> None:
        self._features = head.normalise(inputs[0].detach())

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def add(self, logits: Tensor, labels: Tensor, *, examples: int | None = None) -> None:
        """Add one batch of `examples`: `logits` [n, labels] of a forward under `attached`, and the labels to explain [n].

        Every example must have a sequence of its own: packed ones would be squared together.
        """
        # Examples do not touch each other in the forward pass, so the gradient of the sum holds each one's own.
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        torch.autograd.grad(loss, self.model.adapter_parameters(), allow_unused=True)
        self.examples += len(labels) if examples is None else examples
        if self.model.head is None:
            return
        error = functional.one_hot(labels, logits.shape[1]).float() - logits.detach().softmax(-1)
        self._sum("head.weight", error.square().T @ self._features.square())
        self._sum("head.bias", error.square().sum(0))

    def mean(self) -> dict[str, Tensor]:
        """The averages over all examples added, on the CPU."""
        return {name: (total / self.examples).cpu() for name, total in sorted(self.sums.items())}
