"""Merging: the point on the line, how it is chosen, and that the line is one in ΔW."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from workers.strategies.merge import Merge, balanced_loss, held_out, interpolate_head, moved_to
from workers.training.adapters import adapted_layers, delta_weights, detach
from workers.training.algebra import average, concatenate
from workers.training.classifier import ClassificationHead
from workers.training.contract import TrainRequest
from workers.training.loop import train
from workers.training.preparation import prepare
from workers.training.run import Run
from workers.training.versions import Version, read_version
from workers.training.watching import Watch

RequestFor = Callable[..., TrainRequest]
LABELS = ["sport", "space", "food"]
WATCH = Watch(lambda _: None, lambda: None)


def version_of(request: TrainRequest) -> Version:
    return read_version(Path(request.output), request.base)


@pytest.fixture
def parent(request_for: RequestFor, quietly: Any) -> TrainRequest:
    """A first version over two labels."""
    request = request_for("merge", LABELS[:2], output="parent", epochs=4, learning_rate=5e-3)
    train(request, **quietly)
    return request


@pytest.fixture
def child_request(request_for: RequestFor, rows_about: Any, parent: TrainRequest) -> Callable[..., Any]:
    """Make an update of the parent with the third label: `child_request("name", parameters=…)`."""

    def make(name: str, **more: Any) -> TrainRequest:
        more = {"buffer": rows_about(LABELS[:2], 20, first_id=300), "learning_rate": 5e-3} | more
        return request_for(
            "merge",
            LABELS,
            output=name,
            parent=parent.output,
            rows=rows_about(["food"], 30, first_id=900),
            **more,
        )

    return make


def started(request: TrainRequest) -> tuple[Merge, Run]:
    strategy = Merge(dict(request.parameters))
    run, _ = prepare(request, strategy, WATCH)
    strategy.start(run)
    with torch.no_grad():
        for parameter in run.model.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    return strategy, run


def test_without_a_parent_it_is_plain_training(request_for: RequestFor, quietly: Any) -> None:
    merge, plain = (request_for(name, LABELS, output=name) for name in ("merge", "sequential"))
    for request in (merge, plain):
        train(request, **quietly)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert Path(merge.output, name).read_bytes() == Path(plain.output, name).read_bytes()


def test_the_version_is_the_average_of_parent_and_child_in_their_weight_changes(
    child_request: Callable[..., Any],
) -> None:
    strategy, run = started(child_request("child"))
    assert run.parent is not None
    trained, old = detach(run.model.encoder), run.parent.adapter
    merged, error = strategy.combine(run, trained)
    beta = strategy.chosen["beta"]
    assert isinstance(beta, float)
    expected, _ = average(old, concatenate(old, trained), beta, max_rank=64)
    assert error == 0.0
    assert merged.rank == 8
    for (_, a, b, s), (_, a2, b2, s2) in zip(merged.factors(), expected.factors(), strict=True):
        torch.testing.assert_close(
            s * b.double() @ a.double(), s2 * b2.double() @ a2.double(), rtol=1e-6, atol=1e-7
        )


def test_the_measured_model_is_the_one_that_is_written(
    child_request: Callable[..., Any], quietly: Any
) -> None:
    """The loss noted for β, measured by scaling, is that of the stored version on the same rows."""
    request = child_request("child")
    train(request, **quietly)
    record = version_of(request).facts["strategy_record"]
    grown = replace(request, labels=tuple(LABELS), parent=request.output)
    _, run = started_plainly(grown)
    rows = held_out(started_plainly(request)[1])
    measured = dict(map(tuple, record["losses"]))[record["beta"]]
    assert balanced_loss(run, rows) == pytest.approx(measured, rel=1e-4)


def started_plainly(request: TrainRequest) -> tuple[Merge, Run]:
    strategy = Merge({})
    run, _ = prepare(request, strategy, WATCH)
    strategy.start(run)
    return strategy, run


def test_the_grids_best_point_is_taken_and_ties_go_to_the_parent(
    child_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, run = started(child_request("child", parameters={"grid": 4}))
    assert run.parent is not None
    given = iter([0.9, 0.5, 0.7, 0.5, 0.6])
    monkeypatch.setattr("workers.strategies.merge.balanced_loss", lambda *_: next(given))
    assert strategy.choose(run, run.parent.head) == 0.25
    assert strategy.record()["losses"] == [[0.0, 0.9], [0.25, 0.5], [0.5, 0.7], [0.75, 0.5], [1.0, 0.6]]


def test_held_out_rows_are_neither_trained_on_nor_lost(child_request: Callable[..., Any]) -> None:
    _, run = started(child_request("child", parameters={"validation": 0.2}))
    fresh, buffered = held_out(run)
    assert (len(fresh), len(run.fresh)) == (6, 24)
    assert (len(buffered), len(run.replay)) == (8, 32)
    assert not set(fresh.ids) & set(run.fresh.ids)
    assert not set(buffered.ids) & set(run.replay.ids)
    assert (fresh.ids >= 900).all()
    assert (buffered.ids < 900).all()


def test_every_label_of_old_and_of_new_rows_has_one_vote(child_request: Callable[..., Any]) -> None:
    _, run = started(child_request("child", parameters={"validation": 0.3}))
    tables = held_out(run)
    means = []
    run.model.eval()
    for table in tables:
        for label in sorted(set(table.labels.tolist())):
            picked = table.take((table.labels == label).nonzero()[0])
            [batch] = run.batches_of(picked, batch_size=100, phase="consolidating")
            with torch.no_grad():
                means.append(float(functional.cross_entropy(run.model(batch), batch.labels)))
    assert len(means) == 3
    assert balanced_loss(run, tables) == pytest.approx(sum(means) / 3, rel=1e-5)


def test_looking_at_a_point_leaves_the_model_as_it_was(child_request: Callable[..., Any]) -> None:
    _, run = started(child_request("child"))
    assert run.parent is not None
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    full = {name: delta.detach() for name, delta in delta_weights(run.model.encoder).items()}
    with moved_to(run.model, run.parent.head, 0.25):
        for name, delta in delta_weights(run.model.encoder).items():
            torch.testing.assert_close(delta, 0.25 * full[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert {layer.scaling["default"] for layer in adapted_layers(run.model.encoder).values()} == {2.0}


def test_old_rows_of_the_head_go_back_with_the_adapter_and_new_ones_stay() -> None:
    old, head = ClassificationHead(4, 2), ClassificationHead(4, 3)
    with torch.no_grad():
        head.weight.fill_(1.0)
        head.bias.fill_(2.0)
        interpolate_head(head, old, 0.25)
    torch.testing.assert_close(head.weight.detach(), torch.tensor([[0.25] * 4, [0.25] * 4, [1.0] * 4]))
    torch.testing.assert_close(head.bias.detach(), torch.tensor([0.5, 0.5, 2.0]))


def test_without_buffered_rows_the_given_point_is_taken(
    child_request: Callable[..., Any], parent: TrainRequest, quietly: Any
) -> None:
    request = child_request("child", buffer=[], parameters={"unmeasured": 0.0})
    train(request, **quietly)
    child, old = version_of(request), version_of(parent)
    assert child.facts["strategy_record"] == {"beta": 0.0, "measured": False}
    assert torch.equal(child.head.weight[:2], old.head.weight)
    for (_, a, b, s), (_, a2, b2, s2) in zip(child.adapter.factors(), old.adapter.factors(), strict=True):
        torch.testing.assert_close(s * b @ a, s2 * b2 @ a2)
