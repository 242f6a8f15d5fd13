"""DER++: the loss by hand, whose logits are stored and for how long, independent draws."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workers.strategies.derpp import Derpp
from workers.strategies.teachers import row_logits
from workers.training.contract import TrainRequest
from workers.training.loop import train
from workers.training.preparation import prepare
from workers.training.run import Run
from workers.training.versions import read_version
from workers.training.watching import Watch

RequestFor = Callable[..., TrainRequest]
NAN = float("nan")


class Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, _batch: Any) -> Tensor:
        return self.logits


def derpp_with(stored: Sequence[Sequence[float]], **parameters: float) -> Derpp:
    """A strategy whose buffer holds the ids 100, 101 … with these logits, and that corrects no shares."""
    strategy = Derpp({"balance": 0.0, **parameters})
    strategy.position = {100 + index: index for index in range(len(stored))}
    strategy.stored = torch.tensor(stored)
    strategy.offsets = torch.zeros(3)
    return strategy


def batch(ids: Sequence[int], labels: Sequence[int], draw: Sequence[int]) -> Any:
    return SimpleNamespace(ids=tuple(ids), labels=torch.tensor(labels), draw=torch.tensor(draw))


def prepared(request: TrainRequest) -> tuple[Derpp, Run]:
    """The strategy and its run just after `start`."""
    strategy = Derpp(request.parameters)
    run, _ = prepare(request, strategy, Watch(lambda _: None, lambda: None))
    strategy.start(run)
    return strategy, run


def test_the_loss_is_that_of_the_paper_by_hand() -> None:
    model = Fixed([[0.0, 0.0, math.log(2)], [1.0, 2.0, 9.0], [math.log(2), 0.0, 0.0]])
    strategy = derpp_with([[0.0, 4.0], [7.0, 7.0]], alpha=0.5, beta=2.0)
    loss = strategy.loss(model, batch([7, 100, 101], [2, 1, 0], [0, 1, 2]))  # type: ignore[arg-type]  # a stand-in for the real thing
    # CE of the fresh row is ln 2; squares (1 − 0)² and (2 − 4)², of which the third logit is none; CE of the last ln 2.
    assert float(loss) == pytest.approx(math.log(2) + 0.5 * 2.5 + 2.0 * math.log(2))


def test_logits_are_compared_for_the_labels_that_the_rows_version_knew() -> None:
    model = Fixed([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    strategy = derpp_with([[0.0, NAN, NAN], [0.0, 0.0, 0.0]])
    drift = strategy.drift(model(None), batch([100, 101], [0, 0], [1, 1]))
    assert drift.tolist() == pytest.approx([1.0, 14 / 3])
    drift.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert model.logits.grad is not None
    torch.testing.assert_close(model.logits.grad[0], torch.tensor([2.0, 0.0, 0.0]))


def test_only_the_first_draw_is_held_to_its_logits_and_only_the_second_to_its_labels() -> None:
    model = Fixed([[0.0, 0.0, 0.0]] * 3)
    strategy = derpp_with([[5.0, 0.0]], alpha=1.0, beta=1.0)
    strategy.loss(model, batch([7, 100, 100], [0, 1, 2], [0, 1, 2])).backward()  # type: ignore[arg-type,no-untyped-call]  # a stand-in, and torch leaves `backward` untyped
    assert model.logits.grad is not None
    torch.testing.assert_close(model.logits.grad[1], torch.tensor([-5.0, 0.0, 0.0]))
    torch.testing.assert_close(model.logits.grad[2], torch.tensor([1 / 3, 1 / 3, -2 / 3]))


def test_without_a_buffer_it_is_cross_entropy(request_for: RequestFor) -> None:
    strategy, _ = prepared(request_for("derpp", ["sport", "space"], rows=None, parameters={"balance": 0.0}))
    loss = strategy.loss(Fixed([[0.0, math.log(3)]]), batch([3], [0], [0]))  # type: ignore[arg-type]  # a stand-in for the real thing
    assert float(loss) == pytest.approx(math.log(4))


def lineage(request_for: RequestFor, rows_about: Any, quietly: Any) -> tuple[TrainRequest, TrainRequest]:
    """Two updates: sport and space, then food with a buffer of both; the third request, not trained, adds money."""
    first = request_for("derpp", ["sport", "space"], output="v1", learning_rate=5e-3)
    train(first, **quietly)
    sport = rows_about(["sport", "space"], 5, first_id=500)
    second = request_for(
        "derpp", ["sport", "space", "food"], output="v2", parent=first.output, buffer=sport,
        rows=rows_about(["food"], 16, first_id=600), learning_rate=5e-3,
    )  # fmt: skip
    train(second, **quietly)
    third = request_for(
        "derpp", ["sport", "space", "food", "money"], output="v3", parent=second.output,
        buffer=sport[3:] + rows_about(["food"], 4, first_id=600), rows=rows_about(["money"], 8, first_id=700),
    )  # fmt: skip
    return second, third


def test_a_row_keeps_the_logits_of_the_version_that_learnt_it(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    second, third = lineage(request_for, rows_about, quietly)
    at_second, run = prepared(second)
    learnt_by_first = row_logits(run, run.replay, labels=2)
    torch.testing.assert_close(at_second.stored, learnt_by_first)
    at_third, run = prepared(third)
    # The seven rows of the first version: its logits, not those of the second, and none for food.
    torch.testing.assert_close(at_third.stored[:7, :2], learnt_by_first[3:])
    assert at_third.stored[:7, 2].isnan().all()
    by_second = row_logits(run, run.replay, labels=3)
    assert not torch.allclose(by_second[:7, :2], learnt_by_first[3:], atol=1e-3)
    torch.testing.assert_close(at_third.stored[7:], by_second[7:])
    assert at_third.stored.shape == (11, 3)


def test_the_state_is_as_large_as_the_buffer(request_for: RequestFor, rows_about: Any, quietly: Any) -> None:
    second, _ = lineage(request_for, rows_about, quietly)
    assert "derpp" not in read_version(Path(second.parent or ""), second.base).states
    state = read_version(Path(second.output), second.base).states["derpp"]
    assert state["ids"].tolist() == list(range(500, 510))
    assert state["logits"].shape == (10, 2)


@pytest.mark.parametrize("state_lost", ["another strategy", "dropped"])
def test_logits_that_nobody_stored_are_rebuilt_from_the_parent(
    request_for: RequestFor, rows_about: Any, quietly: Any, state_lost: str
) -> None:
    second, third = lineage(request_for, rows_about, quietly)
    if state_lost == "another strategy":
        train(replace(second, strategy="sequential", output=second.output + "s"), **quietly)
        third = replace(third, parent=second.output + "s")
    else:
        Path(second.output, "state", "derpp.safetensors").unlink()
    strategy, run = prepared(third)
    torch.testing.assert_close(strategy.stored, row_logits(run, run.replay, labels=3))


def test_each_update_draws_twice_and_the_draws_differ(
    request_for: RequestFor, rows_about: Any, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, _ = lineage(request_for, rows_about, quietly)
    drawn: dict[int, list[int]] = {1: [], 2: []}
    plain = Derpp.loss

    def watching(self: Derpp, model: Any, batch: Any) -> Tensor:
        for id_, draw in zip(batch.ids, batch.draw.tolist(), strict=True):
            if draw:
                drawn[draw].append(id_)
        return plain(self, model, batch)

    monkeypatch.setattr(Derpp, "loss", watching)
    train(
        replace(second, output=second.output + "again", checkpoints=second.checkpoints + "again"), **quietly
    )
    assert len(drawn[1]) == len(drawn[2]) == 32
    assert drawn[1] != drawn[2]


def test_labels_weigh_as_the_mix_of_fresh_rows_and_second_draw_has_them(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    second, _ = lineage(request_for, rows_about, quietly)
    strategy, _ = prepared(replace(second, parameters={"beta": 0.5}))
    # 1 : 0.5 between fresh and buffered rows; sport and space share the latter evenly.
    torch.testing.assert_close(strategy.offsets.exp(), torch.tensor([1 / 6, 1 / 6, 2 / 3]))
