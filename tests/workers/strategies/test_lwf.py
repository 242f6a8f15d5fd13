"""LwF: the divergence by hand, a teacher that is the parent and stays it."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workers.strategies.lwf import Lwf, divergence
from workers.strategies.teachers import LiveTeacher, StoredTeacher, at_inference
from workers.training.batches import Batch, Pick, collate
from workers.training.contract import AdapterSettings, TrainRequest
from workers.training.errors import Stopped
from workers.training.loop import train
from workers.training.preparation import prepare
from workers.training.run import Run
from workers.training.watching import Watch

RequestFor = Callable[..., TrainRequest]


class Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, _batch: Any) -> Tensor:
        return self.logits


class Saying:
    """A teacher whose logits are given."""

    def __init__(self, logits: list[list[float]]) -> None:
        self.given = torch.tensor(logits)

    def logits(self, _model: Any, _batch: Any) -> Tensor:
        return self.given


def child_of(request_for: RequestFor, rows_about: Any, quietly: Any, **changes: Any) -> TrainRequest:
    """An update that adds food to a trained parent, with a buffer."""
    first = request_for("lwf", ["sport", "space"], output="v1", learning_rate=5e-3)
    train(first, **quietly)
    return request_for(
        "lwf", ["sport", "space", "food"], parent=first.output, output="v2",
        **{"rows": rows_about(["food"], 12, first_id=600),
           "buffer": rows_about(["sport", "space"], 4, first_id=500), **changes},
    )  # fmt: skip


def prepared(request: TrainRequest) -> tuple[Lwf, Run]:
    """The strategy and its run just after `start`."""
    strategy = Lwf(request.parameters)
    run, _ = prepare(request, strategy, Watch(lambda _: None, lambda: None))
    strategy.start(run)
    return strategy, run


def mixed_batch(run: Run) -> Batch:
    """Two fresh rows and three buffered ones."""
    return collate(
        run.fresh, run.replay, Pick(torch.tensor([1, 4]).numpy(), torch.tensor([0, 6, 2]).numpy(), torch.ones(3, dtype=torch.long).numpy())
    )  # fmt: skip


def test_the_divergence_is_softened_and_scaled_by_hand() -> None:
    # At T = 2 logits of (2 ln 3, 0) soften to (3/4, 1/4), and (0, 0) to (1/2, 1/2).
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    measured = divergence(torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2), 2.0)
    assert float(measured) == pytest.approx(4 * kl)
    assert float(divergence(torch.ones(3, 2), torch.zeros(3, 2), 2.0)) == pytest.approx(0.0, abs=1e-7)


def test_the_loss_learns_fresh_labels_and_keeps_old_answers_on_every_row() -> None:
    strategy = Lwf({"strength": 3.0})
    strategy.offsets = 0.0
    strategy.teacher = Saying([[2 * math.log(3), 0.0], [0.0, 0.0]])
    batch = SimpleNamespace(labels=torch.tensor([2, 0]), replayed=torch.tensor([False, True]))
    loss = strategy.loss(Fixed([[0.0, 0.0, math.log(2)], [1.0, 1.0, 5.0]]), batch)  # type: ignore[arg-type]  # a stand-in for the real thing
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    # Half of the rows diverge; the third logit, of a label the parent did not know, is not distilled.
    assert float(loss) == pytest.approx(math.log(2) + 3.0 * 4 * kl / 2)


def test_both_teachers_give_the_parents_answers(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    strategy, run = prepared(child_of(request_for, rows_about, quietly))
    batch, model = mixed_batch(run), run.model
    live = LiveTeacher(model)
    with at_inference(model):
        by_parent = model(batch)[:, :2]
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter))
    assert isinstance(strategy.teacher, StoredTeacher)
    torch.testing.assert_close(strategy.teacher.logits(model, batch), by_parent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(live.logits(model, batch)[:, :2], by_parent, rtol=1e-4, atol=1e-5)


def test_a_row_both_fresh_and_buffered_has_one_answer_each(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    request = child_of(request_for, rows_about, quietly, buffer=rows_about(["sport"], 8, first_id=600))
    strategy, run = prepared(request)
    batch = mixed_batch(run)
    with at_inference(run.model):
        expected = run.model(batch)[:, :2]
    assert strategy.teacher is not None
    torch.testing.assert_close(strategy.teacher.logits(run.model, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_teaching_leaves_the_models_mode_and_what_trains_as_they_were(
    request_for: RequestFor, rows_about: Any, quietly: Any, training: bool
) -> None:
    request = child_of(request_for, rows_about, quietly, adapter=AdapterSettings(r=4, alpha=8.0, dropout=0.5))
    strategy = Lwf({})
    run, _ = prepare(request, strategy, Watch(lambda _: None, lambda: None))
    run.model.train(training)
    modes = {name: module.training for name, module in run.model.named_modules()}
    trainable = set(run.model.trainable())
    strategy.start(run)
    live = LiveTeacher(run.model)
    answers = live.logits(run.model, mixed_batch(run))
    assert {name: module.training for name, module in run.model.named_modules()} == modes
    assert set(run.model.trainable()) == trainable
    assert not answers.requires_grad
    assert not any(value.requires_grad for value in live.parameters.values())
    assert isinstance(strategy.teacher, StoredTeacher)
    assert not strategy.teacher.stored.requires_grad
    # And no dropout: asked twice, the parent answers the same.
    assert torch.equal(answers, live.logits(run.model, mixed_batch(run)))


def test_after_a_checkpoint_the_teacher_is_still_the_parent(
    request_for: RequestFor, rows_about: Any, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = child_of(request_for, rows_about, quietly, learning_rate=5e-3)
    of_parent = prepared(request)[0].teacher
    taught: list[Tensor] = []
    plain = Lwf.loss

    def watching(self: Lwf, model: Any, batch: Any) -> Tensor:
        assert isinstance(self.teacher, StoredTeacher)
        taught.append(self.teacher.stored)
        return plain(self, model, batch)

    seen: list[Any] = []
    with pytest.raises(Stopped):
        train(
            request,
            on_progress=seen.append,
            should_stop=lambda: (
                "stop" if seen and seen[-1].phase == "training" and seen[-1].step == 3 else None
            ),
        )
    monkeypatch.setattr(Lwf, "loss", watching)
    train(request, **quietly)
    assert isinstance(of_parent, StoredTeacher)
    assert taught
    assert all(torch.equal(stored, of_parent.stored) for stored in taught)


def test_it_works_without_a_buffer_and_without_a_parent(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    request = child_of(request_for, rows_about, quietly, buffer=None)
    assert train(request, **quietly).replay_rows == 0


def test_a_stronger_teacher_keeps_the_parents_answers_closer(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    # Rows of one label under the name of another: what they teach contradicts the parent.
    mislabelled = [{**row, "label": "sport"} for row in rows_about(["space"], 12, first_id=600)]
    request = child_of(request_for, rows_about, quietly, learning_rate=5e-3, rows=mislabelled)
    distances = []
    for strength in (0.0, 10.0):
        told = replace(
            request,
            parameters={"strength": strength, "balance": 0.0},
            output=f"{request.output}-{strength}",
            checkpoints=f"{request.checkpoints}-{strength}",
        )
        strategy, run = prepared(told)
        train(told, **quietly)
        grown, _ = prepare(replace(told, parent=told.output), Lwf({}), Watch(lambda _: None, lambda: None))
        batch = mixed_batch(run)
        assert strategy.teacher is not None
        with at_inference(grown.model):
            answers = grown.model(batch)[:, :2]
        distances.append(float(divergence(strategy.teacher.logits(run.model, batch), answers, 1.0)))
    assert distances[1] < distances[0] / 2
