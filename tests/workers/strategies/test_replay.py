"""Replay: the loss by hand, and what the label shares correct."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from workers.strategies.replay import Replay
from workers.strategies.sequential import Sequential
from workers.training.contract import TrainRequest
from workers.training.errors import TrainingFailed
from workers.training.preparation import prepare
from workers.training.watching import Watch

RequestFor = Callable[..., TrainRequest]


class Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, _batch: Any) -> torch.Tensor:
        return self.logits


def batch(labels: list[int]) -> Any:
    return SimpleNamespace(labels=torch.tensor(labels))


def test_sequential_is_mean_cross_entropy() -> None:
    # Softmax of (0, ln 3) is (1/4, 3/4).
    model = Fixed([[0.0, math.log(3)], [0.0, math.log(3)]])
    loss = Sequential({}).loss(model, batch([0, 1]))
    assert float(loss) == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


def test_replay_shifts_logits_by_the_log_of_the_label_shares() -> None:
    strategy = Replay({})
    strategy.offsets = torch.tensor([0.75, 0.25]).log()
    # Even logits: the shifted softmax is the shares themselves.
    loss = strategy.loss(Fixed([[0.0, 0.0], [0.0, 0.0]]), batch([0, 1]))
    assert float(loss) == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_shares_are_those_of_the_mix(request_for: RequestFor, rows_about: Any) -> None:
    request = request_for(
        "replay",
        ["sport", "space", "food"],
        rows=rows_about(["food"], 10),
        buffer=rows_about(["sport", "sport", "sport", "space"], 2),
    )
    strategy = Replay({"fraction": 0.5})
    run, _ = prepare(request, strategy, Watch(lambda _: None, lambda: None))
    strategy.start(run)
    # Half of the mix is food; of the other half, three in four are sport.
    torch.testing.assert_close(strategy.offsets.exp(), torch.tensor([0.375, 0.125, 0.5]))


def test_a_label_absent_from_the_mix_has_a_finite_share(request_for: RequestFor, rows_about: Any) -> None:
    strategy = Replay({})
    request = request_for("replay", ["sport", "space", "food"], rows=rows_about(["food"], 10))
    run, _ = prepare(request, strategy, Watch(lambda _: None, lambda: None))
    strategy.start(run)
    torch.testing.assert_close(strategy.offsets.exp(), torch.tensor([0.1, 0.1, 1.0]))


@pytest.mark.parametrize(
    "parameters", [{"fraction": 1.0}, {"fraction": -0.1}, {"balance": 3}, {"fractoin": 0.5}]
)
def test_parameters_are_bounded_and_known(parameters: dict[str, float]) -> None:
    with pytest.raises(TrainingFailed) as caught:
        Replay(parameters)
    assert caught.value.code == "bad_parameters"
    assert next(iter(parameters)) in caught.value.message
