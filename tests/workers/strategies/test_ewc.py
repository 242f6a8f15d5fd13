"""EWC on the weight change: penalty by hand, Fisher against brute force, state handed on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from workers.strategies.ewc import Ewc, FisherMeter, estimate
from workers.training.adapters import adapted_layers, attach_new, delta_weights
from workers.training.base_models import load_encoder
from workers.training.batches import Batch
from workers.training.classifier import ClassificationHead, Classifier
from workers.training.contract import AdapterSettings, BaseFolder, TrainRequest
from workers.training.errors import TrainingFailed
from workers.training.loop import train
from workers.training.preparation import prepare
from workers.training.versions import Version, read_version
from workers.training.watching import Watch

RequestFor = Callable[..., TrainRequest]


def small_model(base: BaseFolder) -> Classifier:
    torch.manual_seed(1)
    model = Classifier(
        attach_new(load_encoder(base), AdapterSettings(r=4, alpha=8.0)), ClassificationHead(32, 3)
    )
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.normal_(std=0.1)
    return model.eval()


def some_batch() -> Batch:
    ids = torch.tensor([[101, 2001, 2002, 2003, 102], [101, 2004, 102, 0, 0], [101, 2005, 2006, 102, 0]])
    labels = torch.tensor([0, 2, 1])
    return Batch(ids, (ids != 0).long(), labels, torch.zeros(3, dtype=torch.bool), (1, 2, 3))


def brute_force(model: Classifier, batch: Batch) -> dict[str, torch.Tensor]:
    """Gradient of each example's log-likelihood with respect to W itself, squared, then averaged."""
    layers = adapted_layers(model.encoder)
    weights = {name: layer.base_layer.weight for name, layer in layers.items()}
    weights |= {"head.weight": model.head.weight, "head.bias": model.head.bias}
    for weight in weights.values():
        weight.requires_grad_(True)
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for row in range(len(batch.labels)):
        width = int(batch.attention_mask[row].sum())
        alone = Batch(
            batch.input_ids[row : row + 1, :width], batch.attention_mask[row : row + 1, :width],
            batch.labels[row : row + 1], batch.draw[row : row + 1], (0,),
        )  # fmt: skip
        log_likelihood = -functional.cross_entropy(model(alone), alone.labels)
        for name, gradient in zip(
            weights, torch.autograd.grad(log_likelihood, list(weights.values())), strict=True
        ):
            sums[name] += gradient.square()
    return {name: total / len(batch.labels) for name, total in sums.items()}


def test_fisher_is_the_mean_of_squared_per_example_gradients_of_the_full_weight(tiny: BaseFolder) -> None:
    model, batch = small_model(tiny), some_batch()
    meter = FisherMeter(model)
    with meter.attached():
        meter.add(model(batch), batch.labels)
    expected = brute_force(small_model(tiny), batch)
    measured = meter.mean()
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(measured[name], value.detach(), rtol=1e-3, atol=1e-9)


def test_fisher_does_not_depend_on_how_examples_are_batched(tiny: BaseFolder) -> None:
    model, batch = small_model(tiny), some_batch()
    together, apart = FisherMeter(model), FisherMeter(model)
    with together.attached():
        together.add(model(batch), batch.labels)
    with apart.attached():
        for row in range(3):
            part = Batch(
                *(
                    t[row : row + 1]
                    for t in (batch.input_ids, batch.attention_mask, batch.labels, batch.draw)
                ),
                ids=(0,),
            )
            apart.add(model(part), part.labels)
    for name, value in together.mean().items():
        torch.testing.assert_close(apart.mean()[name], value, rtol=1e-3, atol=1e-10)


def test_the_penalty_is_half_lambda_times_fisher_times_the_squared_change(tiny: BaseFolder) -> None:
    model = small_model(tiny)
    ewc = Ewc({"strength": 6.0})
    names = list(delta_weights(model.encoder))
    ewc.fisher = {name: torch.zeros(32, 32) for name in names} | {
        "head.weight": torch.zeros(2, 32),
        "head.bias": torch.ones(2),
    }
    ewc.anchor = {
        "head.weight": model.head.weight.detach()[:2].clone(),
        "head.bias": model.head.bias.detach()[:2] - 0.5,
    }
    ewc.fisher[names[1]][3, 5] = 10.0
    layer = adapted_layers(model.encoder)[names[1]]
    entry = 2.0 * float(layer.lora_B["default"].weight[3] @ layer.lora_A["default"].weight[:, 5])
    # λ/2 · (10·ΔW₃₅² + 1·0.5² + 1·0.5²)
    assert float(ewc.penalty(model)) == pytest.approx(3.0 * (10.0 * entry**2 + 0.5), rel=1e-5)


def test_the_penalty_reaches_the_adapter_only_through_the_product(tiny: BaseFolder) -> None:
    model = small_model(tiny)
    ewc = Ewc({})
    ewc.fisher = {name: torch.ones(32, 32) for name in delta_weights(model.encoder)}
    ewc.anchor = {}
    before = float(ewc.penalty(model))
    with torch.no_grad():
        for layer in adapted_layers(model.encoder).values():
            layer.lora_A["default"].weight.mul_(4.0)
            layer.lora_B["default"].weight.div_(4.0)
    assert float(ewc.penalty(model)) == pytest.approx(before, rel=1e-5)


def test_the_version_is_one_adapter_of_the_summed_rank(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    first = request_for("ewc", ["sport", "space"], output="v1")
    train(first, **quietly)
    labels = ["sport", "space", "food"]
    second = request_for("ewc", labels, output="v2", parent=first.output, rows=rows_about(["food"], 16))
    train(second, **quietly)
    version = read_version(Path(second.output), second.base)
    assert version.adapter.rank == 8
    assert version.facts["compression"]["relative_error"] == 0.0
    third = request_for(
        "ewc", labels, output="v3", parent=second.output, rows=rows_about(["food"], 16, seed=5)
    )
    from dataclasses import replace

    train(replace(third, adapter=replace(third.adapter, max_rank=6)), **quietly)
    compressed = read_version(Path(third.output), third.base)
    assert compressed.adapter.rank == 6
    assert 0.0 < compressed.facts["compression"]["relative_error"] < 1.0


def test_fisher_accumulates_over_updates(request_for: RequestFor, rows_about: Any, quietly: Any) -> None:
    first = request_for("ewc", ["sport", "space"], output="v1")
    train(first, **quietly)
    second = request_for(
        "ewc", ["sport", "space", "food"], output="v2", parent=first.output, rows=rows_about(["food"], 8)
    )
    train(second, **quietly)
    old = read_version(Path(first.output), first.base).states["ewc"]
    new = read_version(Path(second.output), second.base).states["ewc"]
    assert new["head.weight"].shape == (3, 32)
    for name, fisher in old.items():
        assert (new[name][: len(fisher)] >= fisher * 0.999).all()


def test_a_stronger_penalty_moves_the_old_weights_less(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    first = request_for("ewc", ["sport", "space"], output="v1", epochs=4, learning_rate=5e-3)
    train(first, **quietly)
    moved = []
    parent = read_version(Path(first.output), first.base)
    for name, strength in (("weak", 0.0), ("strong", 1e6)):
        child = request_for(
            "ewc", ["sport", "space", "food"], output=name, parent=first.output, parameters={"strength": strength},
            rows=rows_about(["food"], 24), epochs=4, learning_rate=5e-3,
        )  # fmt: skip
        train(child, **quietly)
        head = read_version(Path(child.output), child.base).head
        moved.append(
            float(
                (head.weight[:2] - parent.head.weight).square().mul(parent.states["ewc"]["head.weight"]).sum()
            )
        )
    assert moved[1] < moved[0] / 10


def test_fisher_missing_from_the_parent_is_rebuilt_from_replay(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    parent = request_for("sequential", ["sport", "space"], output="v1")
    train(parent, **quietly)
    common = {"parent": parent.output, "rows": rows_about(["food"], 8)}
    labels = ["sport", "space", "food"]
    with pytest.raises(TrainingFailed, match="no buffered examples") as caught:
        train(request_for("ewc", labels, output="v2", **common), **quietly)
    assert caught.value.code == "strategy_state_missing"
    with_buffer = request_for(
        "ewc", labels, output="v2", buffer=rows_about(["sport", "space"], 4, first_id=90), **common
    )
    train(with_buffer, **quietly)
    state = read_version(Path(with_buffer.output), with_buffer.base).states["ewc"]
    assert state["head.weight"].shape == (3, 32)


def test_drawn_labels_make_it_the_fisher_of_the_model_not_of_the_data(request_for: RequestFor) -> None:
    request = request_for("ewc", ["sport", "space"])
    strategy = Ewc({})
    run, _ = prepare(request, strategy, Watch(lambda _: None, lambda: None))
    # A zero head predicts evenly: whatever the labels, (y − p)² is 1/4 for both.
    fisher = estimate(run, run.fresh, rows=100, labels=2)
    torch.testing.assert_close(fisher["head.bias"], torch.full((2,), 0.25))


def test_a_fresh_adapter_gives_a_no_gradient_and_yet_every_layer_has_fisher(tiny: BaseFolder) -> None:
    model, batch = small_model(tiny), some_batch()
    with torch.no_grad():
        for layer in adapted_layers(model.encoder).values():
            layer.lora_B["default"].weight.zero_()
    functional.cross_entropy(model(batch), batch.labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    meter = FisherMeter(model)
    with meter.attached():
        meter.add(model(batch), batch.labels)
    for name, layer in adapted_layers(model.encoder).items():
        # Squared gradients of A would say here that nothing about this layer matters.
        assert not layer.lora_A["default"].weight.grad.any()
        assert meter.mean()[name].max() > 0


def test_rows_seen_twice_do_not_change_the_scale_of_the_penalty(tiny: BaseFolder) -> None:
    model, batch = small_model(tiny), some_batch()
    once, twice = FisherMeter(model), FisherMeter(model)
    with once.attached():
        once.add(model(batch), batch.labels)
    with twice.attached():
        for _ in range(2):
            twice.add(model(batch), batch.labels)
    for name, value in once.mean().items():
        torch.testing.assert_close(twice.mean()[name], value)


def test_the_penalty_is_lambda_times_how_far_the_answers_diverge(tiny: BaseFolder) -> None:
    """So λ is a pure number: for a small change ½·F·Δ² is KL(parent ‖ new) per example, in nats."""
    model, batch = small_model(tiny), some_batch()
    with torch.no_grad():
        before = model(batch).log_softmax(-1)
    fisher = torch.zeros(3, 32)
    for label in range(3):
        # The true Fisher takes every label by its probability; squares are linear in the weights of the rows.
        error = functional.one_hot(torch.tensor([label] * 3), 3) - before.exp()
        meter = FisherMeter(model)
        with meter.attached():
            meter.add(model(batch), torch.full((3,), label))
            squares = error.square().unsqueeze(2) * meter._features.square().unsqueeze(1)
        torch.testing.assert_close(meter.mean()["head.weight"], squares.mean(0))
        fisher += (before.exp()[:, label, None, None] * squares).mean(0)
    row, column = divmod(int(fisher.argmax()), 32)
    with torch.no_grad():
        model.head.weight[row, column] += 0.02
        after = model(batch).log_softmax(-1)
    diverged = functional.kl_div(after.double(), before.double(), reduction="batchmean", log_target=True)
    assert float(diverged) == pytest.approx(0.5 * 0.02**2 * float(fisher[row, column]), rel=0.1)


def changes_of(version: Version) -> dict[str, torch.Tensor]:
    """ΔW of each layer."""
    return {name: scaling * b @ a for name, a, b, scaling in version.adapter.factors()}


def test_a_penalty_no_rate_could_follow_stays_finite_and_near_the_parent(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    first = request_for("ewc", ["sport", "space"], output="v1", epochs=4, learning_rate=5e-3)
    train(first, **quietly)
    parent = read_version(Path(first.output), first.base)
    lengths = []
    for strength in (0.0, 1e6):
        child = request_for(
            "ewc", ["sport", "space", "food"], output=f"v2-{strength}", parent=first.output, epochs=6,
            parameters={"strength": strength}, rows=rows_about(["food", "sport"], 16), learning_rate=0.1,
            head_learning_rate=0.5,
        )  # fmt: skip
        train(child, **quietly)
        version = read_version(Path(child.output), child.base)
        old, new = changes_of(parent), changes_of(version)
        fisher = parent.states["ewc"]
        lengths.append(sum(float((fisher[name] * (new[name] - old[name]).square()).sum()) for name in old))
    assert lengths[1] < lengths[0] / 1000
