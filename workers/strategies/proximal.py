"""Implicit steps of quadratic penalties: stable whatever their stiffness, and no change of what is minimised.

A gradient step of rate η on (h/2)·x² overshoots past ηh = 1 and diverges past ηh = 2, and a stiff penalty has entries of
every h. Left out of the gradient and applied after the optimiser's step as

    x ← argmin_x  P(x) + ½ Σ (x − y)² / η      (y: where the optimiser went, η: its step per unit of gradient)

it cannot overshoot: a stiff entry goes back to its anchor, a free one stays where the optimiser took it. At rest
the optimiser's own direction and ∇P cancel, so the minimum is that of loss + P, which would not be so if the
penalty's gradient were capped, or η were not the optimiser's own (Adam scales each entry by its history).

Source: Parikh & Boyd 2014, Proximal Algorithms, section 1.1; forward-backward splitting under a diagonal metric.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

ROUNDS = 4
"""Of conjugate gradients, at most: the stiffest directions, which must not overshoot, come right first."""

TINY = 1e-30


def step_sizes(optimiser: Optimizer, parameter: Tensor) -> Tensor:
    """How far the optimiser goes per unit of gradient, in the shape of `parameter`.

    lr / (√v̂ + ε) where it keeps second moments as Adam does, the rate itself where it keeps none.
    """
    group = next(
        group for group in optimiser.param_groups if any(each is parameter for each in group["params"])
    )
    state = optimiser.state[parameter]
    if "exp_avg_sq" not in state:
        return torch.full_like(parameter, group["lr"])
    second = state["exp_avg_sq"] / (1.0 - group["betas"][1] ** state["step"])
    sizes: Tensor = group["lr"] / (second.sqrt() + group["eps"])
    return sizes


def pull_back(value: Tensor, anchor: Tensor, stiffness: Tensor, steps: Tensor) -> None:
    """Take, in place, the implicit step of ½ Σ stiffness ∘ (value − anchor)²."""
    value.sub_((value - anchor) * (steps * stiffness / (1.0 + steps * stiffness)))


def pull_product(left: Tensor, right: Tensor, stiffness: Tensor, steps: Tensor) -> None:
    """Take, in place on `left`, the implicit step of ½ Σ stiffness ∘ (left · right)².

    `right` couples the entries of a row of `left`, so each row is a system of r equations. All rows are solved at once by
    conjugate gradients, which need thin products only and no [out, r, r] array; they are exact after r rounds, and
    cut short they still lower penalty plus distance.

    Args:
        left: [out, r], changed in place.
        right: [r, in].
        stiffness: [out, in], not negative.
        steps: [out, r], the optimiser's step sizes for `left`.
    """
    # In w = change / √steps the matrix is I + √S·H·√S: nothing is divided by a step of length 0.
    root = steps.sqrt()

    def slope(value: Tensor) -> Tensor:
        return root * ((stiffness * (value @ right)) @ right.T)

    scale = 1.0 / (1.0 + steps * (stiffness @ right.square().T))
    change, residual = torch.zeros_like(left), -slope(left)
    direction = scaled = scale * residual
    size = (residual * scaled).sum(1, keepdim=True)
    for _ in range(min(len(right), ROUNDS)):
        image = direction + slope(root * direction)
        length = size / (direction * image).sum(1, keepdim=True).clamp(min=TINY)
        change, residual = change + length * direction, residual - length * image
        scaled = scale * residual
        before, size = size, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + size / before.clamp(min=TINY) * direction
    left.add_(root * change)
