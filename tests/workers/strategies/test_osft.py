"""OSFT: the leading singular directions survive real training, under Adam, exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.strategies.osft import Osft, leading_directions
from workers.training.adapters import adapted_layers, attach
from workers.training.base_models import load_encoder
from workers.training.contract import BaseFolder, TrainRequest
from workers.training.loop import train
from workers.training.preparation import prepare
from workers.training.versions import read_version
from workers.training.watching import Watch

RequestFor = Callable[..., TrainRequest]
LABELS = ["sport", "space", "food"]
HARD = {"epochs": 5, "learning_rate": 1e-2}


def merged_weights(base: BaseFolder, folder: str | None) -> dict[str, Tensor]:
    """The weight of every layer that updates adapt, at one version."""
    encoder = load_encoder(base)
    if folder is not None:
        version = read_version(Path(folder), base)
        encoder = attach(encoder, version.adapter, trainable=False).merge_and_unload()
    ends = ("attention.self.query.weight", "attention.self.value.weight")
    return {name: tensor for name, tensor in encoder.state_dict().items() if name.endswith(ends)}


def largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def test_leading_directions_are_those_of_the_largest_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    p, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    weight = (q[:, :4] * torch.tensor([9.0, 5.0, 2.0, 1.0])) @ p.T
    u, v = leading_directions(weight, 0.5)
    assert (u.shape, v.shape) == ((6, 2), (4, 2))
    torch.testing.assert_close(u @ u.T, q[:, :2] @ q[:, :2].T, rtol=0, atol=1e-5)
    torch.testing.assert_close(v @ v.T, p[:, :2] @ p[:, :2].T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preserved", [0.25, 0.5])
def test_training_leaves_the_leading_directions_of_the_merged_weight_untouched(
    tiny: BaseFolder, request_for: RequestFor, rows_about: Any, quietly: Any, preserved: float
) -> None:
    first = request_for("sequential", LABELS[:2], output="v1", **HARD)
    train(first, **quietly)
    second = request_for(
        "osft", LABELS, output="v2", parent=first.output, rows=rows_about(["food", "sport"], 16),
        parameters={"preserved": preserved}, **HARD,
    )  # fmt: skip
    train(second, **quietly)
    after = merged_weights(tiny, second.output)
    for name, weight in merged_weights(tiny, first.output).items():
        u, v = leading_directions(weight, preserved)
        change = after[name] - weight
        assert largest(change) > 1e-3, "nothing was learnt, so nothing is shown"
        assert largest(u.T @ change) < 1e-5
        assert largest(change @ v) < 1e-5


def test_the_base_model_is_protected_from_the_first_update_on(
    tiny: BaseFolder, request_for: RequestFor, quietly: Any
) -> None:
    request = request_for("osft", LABELS, **HARD)
    train(request, **quietly)
    after = merged_weights(tiny, request.output)
    for name, weight in merged_weights(tiny, None).items():
        u, v = leading_directions(weight, 0.5)
        assert largest(u.T @ (after[name] - weight)) < 1e-5
        assert largest((after[name] - weight) @ v) < 1e-5


def test_projected_gradients_alone_would_not_keep_adam_in_the_subspace(
    tiny: BaseFolder, request_for: RequestFor, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    projecting, calls = Osft.adjust_step, []

    def only_at_the_start(self: Osft, model: Any) -> None:
        if not calls:
            projecting(self, model)
        calls.append(1)

    monkeypatch.setattr(Osft, "adjust_step", only_at_the_start)
    request = request_for("osft", LABELS, **HARD)
    train(request, **quietly)
    after, left = merged_weights(tiny, request.output), 0.0
    for name, weight in merged_weights(tiny, None).items():
        _, v = leading_directions(weight, 0.5)
        left = max(left, largest((after[name] - weight) @ v))
    assert left > 1e-4


def test_gradients_are_projected_before_they_are_clipped(request_for: RequestFor) -> None:
    strategy = Osft({})
    run, _ = prepare(request_for("osft", LABELS), strategy, Watch(lambda _: None, lambda: None))
    strategy.start(run)
    for layer in adapted_layers(run.model.encoder).values():
        for factor in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
            factor.grad = torch.ones_like(factor)
    strategy.adjust_gradients(run.model)
    for a, b, u, v in strategy.factors(run.model):
        assert a.grad is not None
        assert b.grad is not None
        assert largest(a.grad @ v) < 1e-5
        assert largest(u.T @ b.grad) < 1e-5
        assert largest(a.grad) > 0.1


def test_protecting_nothing_is_training_freely(request_for: RequestFor, quietly: Any) -> None:
    free = request_for("osft", LABELS, output="free", parameters={"preserved": 0.0})
    plain = request_for("sequential", LABELS, output="plain")
    for request in (free, plain):
        train(request, **quietly)
    name = "adapter_model.safetensors"
    assert Path(free.output, name).read_bytes() == Path(plain.output, name).read_bytes()
