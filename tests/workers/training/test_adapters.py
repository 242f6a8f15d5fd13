"""Adapters as tensors: targets, exact sums, compression."""

import pytest
import torch

from workers.training.adapters import (
    Adapter,
    attach,
    attach_new,
    delta_weights,
    detach,
)
from workers.training.algebra import compress, concatenate
from workers.training.base_models import load_encoder
from workers.training.contract import AdapterSettings, BaseFolder
from workers.training.errors import TrainingFailed


def random_adapter(base: BaseFolder, seed: int, *, r: int = 4, alpha: float = 8.0) -> Adapter:
    torch.manual_seed(seed)
    adapter = detach(attach_new(load_encoder(base), AdapterSettings(r=r, alpha=alpha)))
    return Adapter(
        adapter.config, {name: torch.randn_like(tensor) / 10 for name, tensor in adapter.tensors.items()}
    )


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: scaling * (b.double() @ a.double()) for name, a, b, scaling in adapter.factors()}


def test_auto_adapts_query_and_value_of_every_layer(tiny: BaseFolder) -> None:
    names = list(delta_weights(attach_new(load_encoder(tiny), AdapterSettings())))
    assert names == [
        f"encoder.layer.{i}.attention.self.{kind}" for i in (0, 1) for kind in ("query", "value")
    ]


def test_lists_and_regular_expressions_name_layers(tiny: BaseFolder) -> None:
    listed = attach_new(load_encoder(tiny), AdapterSettings(target_modules=("key", "intermediate.dense")))
    assert len(delta_weights(listed)) == 4
    matched = attach_new(load_encoder(tiny), AdapterSettings(target_modules=r".*layer\.1\..*\.query"))
    assert list(delta_weights(matched)) == ["encoder.layer.1.attention.self.query"]


@pytest.mark.parametrize("targets", ["no_such_layer", ("query", "qeury"), r"([", ()])
def test_targets_that_match_nothing_are_an_error(tiny: BaseFolder, targets: str | tuple[str, ...]) -> None:
    with pytest.raises(TrainingFailed) as caught:
        attach_new(load_encoder(tiny), AdapterSettings(target_modules=targets))
    assert caught.value.code == "bad_target_modules"


def test_concatenation_is_the_exact_sum(tiny: BaseFolder) -> None:
    first, second = random_adapter(tiny, 1), random_adapter(tiny, 2, r=8, alpha=4.0)
    both = concatenate(first, second)
    assert both.rank == 12
    one, two = deltas(first), deltas(second)
    for name, delta in deltas(both).items():
        # Scalings of 2 and 1/2 fold without rounding: equal in exact (here double) arithmetic.
        torch.testing.assert_close(delta, one[name] + two[name], rtol=1e-14, atol=1e-16)


def test_a_concatenated_adapter_is_a_plain_peft_adapter(tiny: BaseFolder) -> None:
    first, second = random_adapter(tiny, 1), random_adapter(tiny, 2)
    ids = torch.tensor([[101, 2000, 2001, 102]])
    beside = attach(load_encoder(tiny), concatenate(first, second), trainable=False).eval()
    stacked = attach(load_encoder(tiny), first, trainable=False).merge_and_unload()
    stacked = attach(stacked, second, trainable=False).eval()
    torch.testing.assert_close(beside(ids).last_hidden_state, stacked(ids).last_hidden_state)


def test_adapters_of_other_layers_cannot_be_added(tiny: BaseFolder) -> None:
    other = detach(attach_new(load_encoder(tiny), AdapterSettings(target_modules=("key",))))
    with pytest.raises(TrainingFailed, match="other layers"):
        concatenate(random_adapter(tiny, 1), other)


def test_compression_is_the_best_low_rank_approximation(tiny: BaseFolder) -> None:
    adapter = random_adapter(tiny, 3, r=12)
    small, error = compress(adapter, 5)
    assert small.rank == 5
    lost = total = 0.0
    before, after = deltas(adapter), deltas(small)
    for name, delta in before.items():
        u, s, vh = torch.linalg.svd(delta)
        best = (u[:, :5] * s[:5]) @ vh[:5]
        torch.testing.assert_close(after[name], best, rtol=1e-4, atol=1e-6)
        lost += float((delta - after[name]).square().sum())
        total += float(delta.square().sum())
    assert error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert 0 < error < 1


def test_an_adapter_within_the_bound_is_not_touched(tiny: BaseFolder) -> None:
    adapter = random_adapter(tiny, 3)
    same, error = compress(adapter, 4)
    assert same is adapter
    assert error == 0.0


def test_an_adapter_of_another_shape_is_refused(tiny: BaseFolder) -> None:
    adapter = random_adapter(tiny, 1)
    cut = {name: tensor[:, :7] if "lora_A" in name else tensor for name, tensor in adapter.tensors.items()}
    with pytest.raises(TrainingFailed) as caught:
        attach(load_encoder(tiny), Adapter(adapter.config, cut), trainable=True)
    assert caught.value.code == "bad_version"
