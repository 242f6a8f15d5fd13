"""A-GEM: gradients and steps projected, by hand and through real updates."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from workers.strategies.agem import Agem, remove_conflict
from workers.training.contract import TrainRequest
from workers.training.loop import train

RequestFor = Callable[..., TrainRequest]


class Linear(nn.Module):
    """Logits W·x of the batch's `input_ids`, in the view that strategies have of a model."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, batch: Any) -> torch.Tensor:
        return functional.linear(batch.input_ids, self.weight)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}


def batch(inputs: torch.Tensor, labels: list[int], draws: list[int]) -> Any:
    return SimpleNamespace(
        input_ids=inputs, labels=torch.tensor(labels), replayed=torch.tensor(draws, dtype=torch.long) > 0
    )


def started() -> Agem:
    strategy = Agem({})
    strategy.start(None)  # type: ignore[arg-type]  # it needs nothing of the run
    return strategy


def test_a_conflicting_gradient_loses_its_part_along_the_reference_by_hand() -> None:
    gradient = {"a": torch.tensor([3.0]), "b": torch.tensor([-2.0])}
    # gᵀg_ref = 3 − 4 = −1 and g_refᵀg_ref = 5, so g̃ = g + g_ref / 5.
    remove_conflict(gradient, {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}, sign=-1.0)
    assert gradient["a"].tolist() == pytest.approx([3.2])
    assert gradient["b"].tolist() == pytest.approx([-1.6])


def test_a_gradient_that_agrees_with_the_reference_stays() -> None:
    gradient = {"a": torch.tensor([3.0, 1.0])}
    remove_conflict(gradient, {"a": torch.tensor([1.0, 2.0])}, sign=-1.0)
    assert gradient["a"].tolist() == [3.0, 1.0]


def test_without_a_reference_nothing_changes_and_nothing_is_divided_by_nought() -> None:
    gradient = {"a": torch.tensor([3.0, -1.0])}
    remove_conflict(gradient, {"a": torch.zeros(2)}, sign=-1.0)
    assert gradient["a"].tolist() == [3.0, -1.0]


def test_the_loss_is_of_fresh_rows_and_the_reference_of_replayed_ones() -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(5, 4), [0, 1, 2, 1, 0]
    model, strategy = Linear(torch.randn(3, 4)), started()
    loss = strategy.loss(model, batch(inputs, labels, [0, 0, 0, 1, 1]))  # type: ignore[arg-type]  # a stand-in for the real thing
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for rows, measured in ((slice(0, 3), model.weight.grad), (slice(3, 5), strategy.reference["weight"])):
        alone = Linear(model.weight.detach().clone())
        functional.cross_entropy(alone(batch(inputs[rows], [], [])), torch.tensor(labels[rows])).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert measured is not None
        torch.testing.assert_close(measured, alone.weight.grad)


def test_the_reference_adds_up_over_accumulated_passes_and_starts_anew_each_step() -> None:
    torch.manual_seed(0)
    model, strategy = Linear(torch.randn(3, 4)), started()
    parts = [batch(torch.randn(4, 4), [0, 1, 2, 0], [0, 0, 1, 1]) for _ in range(2)]
    references = []
    for part in parts:
        alone = started()
        alone.loss(model, part)  # type: ignore[arg-type]  # a stand-in for the real thing
        references.append(alone.reference["weight"])
        strategy.loss(model, part).backward()  # type: ignore[arg-type,no-untyped-call]  # a stand-in, and torch leaves `backward` untyped
    torch.testing.assert_close(strategy.reference["weight"], references[0] + references[1])
    strategy.adjust_gradients(model)  # type: ignore[arg-type]  # a stand-in for the real thing
    strategy.adjust_step(model)  # type: ignore[arg-type]  # a stand-in for the real thing
    assert strategy.reference == {}


def climbs(*, project_step: bool, steps: int = 40) -> int:
    """How many of some Adam steps under a projected gradient climb along the reference."""
    torch.manual_seed(0)
    model, strategy = Linear(torch.randn(3, 4)), started()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    count = 0
    for _ in range(steps):
        optimiser.zero_grad()
        # Fresh and buffered rows of like inputs and other labels: they are in conflict.
        inputs = torch.randn(4, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0])
        mixed = batch(torch.cat([inputs, inputs]), [0, 1, 2, 0, 1, 2, 0, 1], [0] * 4 + [1] * 4)
        strategy.loss(model, mixed).backward()  # type: ignore[arg-type,no-untyped-call]  # a stand-in, and torch leaves `backward` untyped
        strategy.adjust_gradients(model)  # type: ignore[arg-type]  # a stand-in for the real thing
        reference, before = strategy.reference["weight"], model.weight.detach().clone()
        assert model.weight.grad is not None
        product = float((model.weight.grad * reference).sum())
        assert product >= -1e-5 * float(reference.norm() * model.weight.grad.norm() + 1.0)
        optimiser.step()
        if project_step:
            strategy.adjust_step(model)  # type: ignore[arg-type]  # a stand-in for the real thing
        strategy.reference = {}
        moved = model.weight.detach() - before
        count += float((moved * reference).sum()) > 1e-5 * float(moved.norm() * reference.norm())
    return count


def test_under_adam_a_projected_gradient_alone_still_climbs_and_a_projected_step_does_not() -> None:
    assert climbs(project_step=False) > 5
    assert climbs(project_step=True) == 0


@contextmanager
def steps_watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Collect the cosine between reference and step of every step taken."""
    cosines: list[float] = []
    plain = Agem.adjust_step

    def watching(self: Agem, model: Any) -> None:
        reference, before = self.reference, self.before
        plain(self, model)
        step = torch.cat([(v.detach() - before[n]).flatten() for n, v in model.trainable().items()])
        along = torch.cat([reference[n].flatten() for n in model.trainable()])
        cosines.append(float(functional.cosine_similarity(step, along, dim=0)))

    with monkeypatch.context() as patch:
        patch.setattr(Agem, "adjust_step", watching)
        yield cosines


@pytest.mark.parametrize("passes", [1, 2])
def test_no_step_of_a_real_update_climbs_along_the_buffered_loss(
    request_for: RequestFor, rows_about: Any, quietly: Any, monkeypatch: pytest.MonkeyPatch, passes: int
) -> None:
    first = request_for("agem", ["sport", "space"], output="v1", epochs=4, learning_rate=5e-3)
    train(first, **quietly)
    second = request_for(
        "agem", ["sport", "space", "food"], output="v2", parent=first.output, rows=rows_about(["food"], 16),
        buffer=rows_about(["sport", "space"], 8, first_id=500), learning_rate=5e-3, gradient_accumulation=passes,
    )  # fmt: skip
    with steps_watched(monkeypatch) as cosines:
        train(second, **quietly)
    assert cosines
    assert max(cosines) < 1e-4
    assert any(abs(cosine) < 1e-4 for cosine in cosines), "no step had to be projected"
