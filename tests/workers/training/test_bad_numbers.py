"""Numbers that are none: the run stops before they do harm, and says where they came from."""

from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from workers.strategies.sequential import Sequential
from workers.training.contract import TrainRequest
from workers.training.curve import LossCurve
from workers.training.errors import TrainingFailed
from workers.training.loop import train

RequestFor = Callable[..., TrainRequest]
BAD_ROW = 7


def failure(request: TrainRequest, quietly: Any) -> TrainingFailed:
    with pytest.raises(TrainingFailed) as caught:
        train(request, **quietly)
    assert not Path(request.output).exists()
    return caught.value


def checkpointed(request: TrainRequest) -> list[str]:
    root = Path(request.checkpoints)
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@pytest.fixture
def one_row_is_bad(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The loss of any batch with the bad row is infinite; returns the batches seen."""
    plain, seen = Sequential.loss, []

    def breaking(self: Sequential, model: Any, batch: Any) -> torch.Tensor:
        seen.append(batch.ids)
        return plain(self, model, batch) * (inf if BAD_ROW in batch.ids else 1.0)

    monkeypatch.setattr(Sequential, "loss", breaking)
    return seen


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_row_with_an_infinite_loss_stops_the_run_and_is_among_the_named(
    request_for: RequestFor, quietly: Any, one_row_is_bad: list[tuple[int, ...]], seed: int, accumulation: int
) -> None:
    request = request_for("sequential", ["sport", "space"], seed=seed, gradient_accumulation=accumulation)
    error = failure(request, quietly)
    assert error.code == "non_finite_loss"
    passes = next(number for number, ids in enumerate(one_row_is_bad) if BAD_ROW in ids)
    assert error.detail["step"] == passes // accumulation + 1
    assert error.detail["examples"] == list(one_row_is_bad[passes])
    assert f"step {error.detail['step']}" in error.message
    assert str(BAD_ROW) in error.message


def test_the_last_good_checkpoint_stays(
    request_for: RequestFor, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = Sequential.loss, []

    def breaking(self: Sequential, model: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        return plain(self, model, batch) * (nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(Sequential, "loss", breaking)
    request = request_for("sequential", ["sport", "space"], checkpoint_seconds=0.0)
    assert failure(request, quietly).detail["step"] == 3
    assert checkpointed(request) == ["step-000000002"]


def test_a_bad_gradient_under_a_good_loss_stops_the_run_before_its_step(
    request_for: RequestFor, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []

    def spoil(_self: Sequential, model: Any) -> None:
        models.append(model)
        model.head.bias.grad[0] = nan

    monkeypatch.setattr(Sequential, "adjust_gradients", spoil)
    error = failure(request_for("sequential", ["sport", "space"]), quietly)
    assert (error.code, error.detail["step"]) == ("non_finite_gradient", 1)
    assert len(error.detail["examples"]) == 8
    assert not models[0].head.bias.any(), "the step was not taken"


def test_a_learning_rate_beyond_reason_ends_in_a_clear_error(request_for: RequestFor, quietly: Any) -> None:
    request = request_for("sequential", ["sport", "space"], learning_rate=1e37, checkpoint_seconds=0.0)
    error = failure(request, quietly)
    assert error.code.startswith("non_finite_")
    assert "learning_rate" in error.message
    for folder in Path(request.checkpoints).iterdir():
        kept = load_file(folder / "tensors.safetensors")
        assert all(tensor.isfinite().all() for name, tensor in kept.items() if name.startswith("model."))


def test_a_last_step_that_overshoots_is_noticed_though_no_loss_follows(
    request_for: RequestFor, quietly: Any
) -> None:
    request = request_for("sequential", ["sport", "space"], max_steps=1, head_learning_rate=1e39)
    error = failure(request, quietly)
    assert (error.code, error.detail["step"]) == ("non_finite_parameters", 1)
    assert error.detail["parameter"].startswith("head.")
    assert checkpointed(request) == []


def test_a_long_batch_names_its_first_twenty_examples() -> None:
    curve = LossCurve([0.5])
    curve.add([torch.tensor(nan)], torch.tensor(1.0), [range(100, 130)])
    with pytest.raises(TrainingFailed, match="119 and 10 more") as caught:
        curve.settle()
    assert caught.value.detail == {"step": 2, "examples": list(range(100, 120))}


def test_steps_settled_together_keep_their_own_losses_and_names() -> None:
    curve = LossCurve()
    for first, loss in ((1.0, 2.0), (3.0, inf)):
        curve.add([torch.tensor(first), torch.tensor(loss)], torch.tensor(1.0), [(1, 2), (3, 4)])
    with pytest.raises(TrainingFailed) as caught:
        curve.settle()
    assert curve.losses == [3.0]
    assert caught.value.detail == {"step": 2, "examples": [3, 4]}
