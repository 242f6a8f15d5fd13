"""Implicit steps: against a dense solution, without overshoot, and with the same minimum as the plain penalty."""

import pytest
import torch
from torch import Tensor

from workers.strategies.proximal import pull_back, pull_product, step_sizes


def problem(rank: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random left [10, rank], right [rank, 12], stiffness [10, 12] over many scales, step sizes [10, rank]."""
    torch.manual_seed(rank)
    return (
        torch.randn(10, rank),
        torch.randn(rank, 12),
        torch.rand(10, 12).pow(6) * 100,
        torch.rand(10, rank),
    )


def test_an_implicit_step_of_a_product_solves_each_rows_equations() -> None:
    left, right, stiffness, steps = problem()
    expected = []
    for row in range(10):
        # (S⁻¹ + A·diag(h)·Aᵀ) x = S⁻¹ y
        metric = torch.diag(1 / steps[row])
        expected.append(
            torch.linalg.solve(metric + right @ torch.diag(stiffness[row]) @ right.T, metric @ left[row])
        )
    pull_product(left, right, stiffness, steps)
    torch.testing.assert_close(left, torch.stack(expected), rtol=1e-3, atol=1e-4)


def test_cut_short_it_still_lowers_penalty_plus_distance() -> None:
    left, right, stiffness, steps = problem(rank=40)
    moved = left.clone()
    pull_product(moved, right, stiffness, steps)

    def penalty(value: Tensor) -> float:
        return float(0.5 * (stiffness * (value @ right).square()).sum())

    assert penalty(moved) + float(0.5 * ((moved - left).square() / steps).sum()) < 0.1 * penalty(left)


def test_steps_of_length_nought_and_no_stiffness_move_nothing() -> None:
    left, right, stiffness, steps = problem()
    moved = left.clone()
    pull_product(moved, right, stiffness, torch.zeros_like(steps))
    pull_product(moved, right, torch.zeros_like(stiffness), steps)
    assert torch.equal(moved, left)


def test_a_value_goes_back_to_its_anchor_as_far_as_it_is_stiff_by_hand() -> None:
    value = torch.tensor([3.0, 3.0, 3.0])
    # x = (y + ηh·anchor) / (1 + ηh), with ηh = 0, 1 and 1e9.
    pull_back(value, torch.ones(3), torch.tensor([0.0, 2.0, 2e9]), torch.full((3,), 0.5))
    assert value.tolist() == pytest.approx([3.0, 2.0, 1.0])


def test_adams_step_is_its_step_sizes_times_its_first_moment() -> None:
    torch.manual_seed(0)
    value = torch.nn.Parameter(torch.randn(5))
    optimiser = torch.optim.AdamW([value], lr=0.01, weight_decay=0.0)
    for _ in range(3):
        value.grad, before = torch.randn(5), value.detach().clone()
        optimiser.step()
    moment = optimiser.state[value]["exp_avg"] / (1 - 0.9**3)
    torch.testing.assert_close(value.detach() - before, -step_sizes(optimiser, value) * moment)
    plain = torch.optim.SGD([value], lr=0.25)
    assert step_sizes(plain, value).tolist() == [0.25] * 5


def test_under_adam_it_comes_to_rest_where_loss_plus_penalty_is_least() -> None:
    torch.manual_seed(0)
    target, stiffness = torch.randn(6), torch.tensor([0.0, 0.1, 1.0, 10.0, 1e3, 1e5])
    value = torch.nn.Parameter(torch.zeros(6))
    optimiser = torch.optim.AdamW([value], lr=0.02, weight_decay=0.0)
    for step in range(1500):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / 1500)
        value.grad = value.detach() - target
        optimiser.step()
        with torch.no_grad():
            pull_back(value, torch.zeros(6), stiffness, step_sizes(optimiser, value))
    torch.testing.assert_close(value.detach(), target / (1 + stiffness), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("strength", [1.0, 1e3, 1e6])
def test_plain_descent_diverges_where_the_proximal_step_does_not(strength: float) -> None:
    def last_norm(*, proximal: bool) -> float:
        torch.manual_seed(0)
        a, b = (0.3 * torch.randn(4, 12)).requires_grad_(), torch.zeros(10, 4).requires_grad_()
        target = torch.randn(10, 12)
        stiffness = strength * torch.rand(10, 12).pow(4)
        optimiser = torch.optim.SGD([a, b], lr=0.05)
        for _ in range(200):
            optimiser.zero_grad()
            loss = 0.5 * (b @ a - target).square().sum()
            if not proximal:
                loss = loss + 0.5 * (stiffness * (b @ a).square()).sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            if proximal:
                with torch.no_grad():
                    pull_product(b, a, stiffness, step_sizes(optimiser, b))
                    pull_product(a.T, b.T, stiffness.T, step_sizes(optimiser, a).T)
        return float((stiffness * (b @ a).detach().square()).sum())

    assert last_norm(proximal=True) < 200.0
    if strength >= 1e3:
        assert not last_norm(proximal=False) < 1e6
