"""O-LoRA: penalty by hand, orthogonality after training, an exact sum."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.strategies.olora import Olora
from workers.strategies.rehearsal import label_shares
from workers.training.adapters import adapted_layers
from workers.training.algebra import row_spaces
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


def parent_of(request_for: RequestFor, quietly: Any) -> TrainRequest:
    parent = request_for("olora", LABELS[:2], output="parent", epochs=3, learning_rate=5e-3)
    train(parent, **quietly)
    return parent


def child_of(request_for: RequestFor, rows_about: Any, parent: TrainRequest, name: str, **more: Any) -> Any:
    return request_for(
        "olora", LABELS, output=name, parent=parent.output, rows=rows_about(["food"], 32, first_id=900), epochs=6,
        learning_rate=5e-3, **more,
    )  # fmt: skip


def started(request: TrainRequest) -> tuple[Olora, Run]:
    strategy = Olora(dict(request.parameters))
    run, _ = prepare(request, strategy, WATCH)
    strategy.start(run)
    return strategy, run


def test_the_penalty_is_the_mean_squared_entry_of_the_overlap(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    strategy, run = started(child_of(request_for, rows_about, parent_of(request_for, quietly), "child"))
    layers = adapted_layers(run.model.encoder)
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_A["default"].weight.zero_()
    name, layer = next(iter(layers.items()))
    previous = strategy.previous[name]
    assert previous.shape == (4, 32)
    with torch.no_grad():
        # Twice the first and thrice the third direction: the overlap has the entries 2 and 3 and nothing else.
        layer.lora_A["default"].weight[0] = 2 * previous[0] + 3 * previous[2]
    entries = len(layers) * 4 * 4
    assert strategy.overlap(run.model).item() == pytest.approx((4 + 9) / entries, rel=1e-4)


def test_how_the_parents_scale_is_divided_between_its_factors_does_not_matter(
    request_for: RequestFor, quietly: Any, rows_about: Any
) -> None:
    parent = parent_of(request_for, quietly)
    strategy, run = started(child_of(request_for, rows_about, parent, "child"))
    assert run.parent is not None
    expected = strategy.overlap(run.model).item()
    adapter = run.parent.adapter
    skewed = replace(
        adapter, tensors={n: t * (100.0 if "lora_A" in n else 0.01) for n, t in adapter.tensors.items()}
    )
    strategy.start(replace(run, parent=replace(run.parent, adapter=skewed)))
    assert strategy.overlap(run.model).item() == pytest.approx(expected, rel=1e-3)
    assert expected > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_a_strong_penalty_keeps_the_new_subspace_clear_of_the_old(
    request_for: RequestFor, rows_about: Any, quietly: Any, seed: int
) -> None:
    parent = parent_of(request_for, quietly)
    overlaps = []
    for name, strength in (("free", 0.0), ("bound", 1e5)):
        child = child_of(request_for, rows_about, parent, name, seed=seed, parameters={"strength": strength})
        train(child, **quietly)
        overlaps.append(version_of(child).facts["strategy_record"]["overlap"])
    assert overlaps[1] < overlaps[0] / 100


def test_the_version_is_exactly_the_parent_plus_the_new_adapter(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    parent = parent_of(request_for, quietly)
    child = child_of(request_for, rows_about, parent, "child")
    train(child, **quietly)
    old, both = version_of(parent).adapter, version_of(child).adapter
    assert both.rank == 8
    spaces = row_spaces(old)
    for (name, a, b, s), (_, old_a, old_b, old_s) in zip(both.factors(), old.factors(), strict=True):
        # The default scaling of 2 folds without rounding, so the parent's part is there bit for bit.
        assert torch.equal(a[:4], old_a)
        assert torch.equal(s * b[:, :4], old_s * old_b)
        assert float((s * b[:, 4:] @ a[4:]).norm()) > 0
        assert spaces[name].shape[0] == 4


def test_the_first_update_is_plain_training(request_for: RequestFor, quietly: Any) -> None:
    free, plain = (request_for(name, LABELS, output=name) for name in ("olora", "sequential"))
    train(free, **quietly)
    train(plain, **quietly)
    for name, tensor in version_of(plain).adapter.tensors.items():
        torch.testing.assert_close(version_of(free).adapter.tensors[name], tensor, rtol=0, atol=1e-6)


def test_buffered_rows_take_part_only_when_asked_for(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    parent = parent_of(request_for, quietly)
    buffer = rows_about(LABELS[:2], 6, first_id=300)
    alone, _ = started(child_of(request_for, rows_about, parent, "alone", buffer=buffer))
    assert alone.replay_fraction == 0.0
    assert not alone.offsets.any()
    mixed, run = started(
        child_of(request_for, rows_about, parent, "mixed", buffer=buffer, parameters={"fraction": 0.5})
    )
    assert mixed.replay_fraction == 0.5
    torch.testing.assert_close(mixed.offsets, label_shares(run, 0.5).log())
