"""The orderings that papers report where every task brings a new domain, on digits in the real engine: means over seeds, by margins that hold."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import digits
from bench.streams import Stream
from tests.workers.strategies.orderings import mean_of
from workers.strategies import catalogue
from workers.strategies.catalogue import STRATEGIES
from workers.strategies.ewc import Ewc
from workers.strategies.sequential import Sequential
from workers.training.adapters import adapted_layers
from workers.training.classifier import Classifier
from workers.training.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]


def permuted_stream(seed: int) -> Stream:
    """Permuted digits with every third training row, for a test that finishes."""
    stream = digits.permuted_stream(seed)
    return replace(stream, tasks=[replace(task, train=task.train[::3]) for task in stream.tasks])


def test_in_new_domains_soft_targets_and_projection_are_above_fine_tuning() -> None:
    sequential = mean_of(permuted_stream, "sequential")
    for strategy in ("agem", "derpp"):
        assert mean_of(permuted_stream, strategy) > sequential + 0.05


def test_in_new_domains_joint_training_is_above_rehearsal_and_that_above_fine_tuning() -> None:
    sequential, replay, joint = (mean_of(permuted_stream, name) for name in ("sequential", "replay", "joint"))
    assert sequential + 0.1 < replay < joint


class PenaltyOnFactors(Sequential):
    """EWC as it is often done by mistake: the parent's own A and B go on, and each is held back by itself.

    Fisher is per example here as well, and of the same rows; only the parameters it is taken over differ.
    """

    name = "ewc-on-factors"
    params_type = Ewc.params_type
    params: Any

    def start(self, run: Run) -> None:
        self.fisher = dict(run.parent.state) if run.parent is not None and run.parent.state else {}
        self.anchor = {name: value.detach().clone() for name, value in factors_and_head(run.model).items()}

    def loss(self, model: Classifier, batch: Any) -> Tensor:
        total = super().loss(model, batch)
        for name, now in factors_and_head(model).items():
            if name in self.fisher:
                moved = now[: len(self.fisher[name])] - self.anchor[name][: len(self.fisher[name])]
                total = total + self.params.strength / 2 * (self.fisher[name] * moved.square()).sum()
        return total

    def finish(self, run: Run) -> dict[str, Tensor]:
        state = factor_fisher(run)
        for name, old in self.fisher.items():
            state[name][: len(old)] += old
        return state


def factors_and_head(model: Classifier) -> dict[str, Tensor]:
    """A and B of every adapted layer, and the head, by names that a safetensors file takes."""
    found: dict[str, Tensor] = {"head.weight": model.head.weight, "head.bias": model.head.bias}
    for name, layer in adapted_layers(model.encoder).items():
        found[f"{name}.A"] = layer.lora_A["default"].weight
        found[f"{name}.B"] = layer.lora_B["default"].weight
    return found


def factor_fisher(run: Run) -> dict[str, Tensor]:
    """The diagonal Fisher of A, B and the head: squared gradients, one example at a time, labels as predicted."""
    generator = torch.Generator().manual_seed(0)
    parameters = factors_and_head(run.model)
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    run.model.eval()
    for batch in run.batches_of(run.fresh, batch_size=1, phase="consolidating"):
        logits = run.model(batch)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, drawn)
        for name, gradient in zip(
            parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True
        ):
            sums[name] += gradient.square()
    return {name: (total / len(run.fresh)).detach() for name, total in sums.items()}


STRENGTHS = (10.0, 100.0)


def test_ewc_on_the_weight_change_keeps_more_than_the_same_penalty_on_a_and_b(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(catalogue.STRATEGIES, PenaltyOnFactors.name, PenaltyOnFactors)
    assert PenaltyOnFactors.name in STRATEGIES
    # Each at its best strength, so that neither is set up to lose.
    on_change, on_factors = (
        max(mean_of(permuted_stream, name, strength=strength) for strength in STRENGTHS)
        for name in ("ewc", PenaltyOnFactors.name)
    )
    assert on_change > on_factors
    assert on_change > mean_of(permuted_stream, "sequential")
