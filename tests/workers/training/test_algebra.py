"""Sums and averages of adapters: about ΔW, whatever the factors."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from workers.training.adapters import Adapter, attach, attach_new, detach
from workers.training.algebra import average, compress, concatenate, row_spaces, scaled
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


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The Frobenius norm of the difference as a share of `other`'s."""
    apart = sum(float((one[name] - other[name]).square().sum()) for name in other)
    return (apart / sum(float(delta.square().sum()) for delta in other.values())) ** 0.5


def weighted(first: Adapter, second: Adapter, weight: float) -> dict[str, Tensor]:
    one, two = deltas(first), deltas(second)
    return {name: (1 - weight) * one[name] + weight * two[name] for name in one}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (3, 7.0)])
def test_an_average_is_the_weighted_sum_of_the_weight_changes(
    tiny: BaseFolder, seed: int, weight: float, rank: int, alpha: float
) -> None:
    first, second = random_adapter(tiny, seed), random_adapter(tiny, seed + 10, r=rank, alpha=alpha)
    result, error = average(first, second, weight, max_rank=64)
    assert (result.rank, error) == (4 + rank, 0.0)
    assert distance(deltas(result), weighted(first, second, weight)) < 1e-6


def test_an_average_past_the_rank_bound_records_what_it_lost(tiny: BaseFolder) -> None:
    first, second = random_adapter(tiny, 1), random_adapter(tiny, 2)
    result, error = average(first, second, 0.4, max_rank=5)
    assert result.rank == 5
    assert distance(deltas(result), weighted(first, second, 0.4)) == pytest.approx(error, rel=1e-4)
    assert 0 < error < 1


def test_an_average_within_the_true_rank_loses_nothing(tiny: BaseFolder) -> None:
    adapter = random_adapter(tiny, 1)
    result, error = average(adapter, adapter, 0.5, max_rank=4)
    assert error < 1e-6
    assert distance(deltas(result), deltas(adapter)) < 1e-6


def test_averaging_factors_entry_by_entry_is_a_different_thing(tiny: BaseFolder) -> None:
    first, second = random_adapter(tiny, 1), random_adapter(tiny, 2)
    entrywise = replace(
        first, tensors={name: (tensor + second.tensors[name]) / 2 for name, tensor in first.tensors.items()}
    )
    assert distance(deltas(entrywise), weighted(first, second, 0.5)) > 0.5
    # The same ΔW under other factors, −B and −A: an average of ΔW does not notice, one of the factors cancels out.
    negated = replace(first, tensors={name: -tensor for name, tensor in first.tensors.items()})
    exact, _ = average(first, negated, 0.5, max_rank=64)
    assert distance(deltas(exact), deltas(first)) < 1e-6


def test_scaling_scales_the_weight_change(tiny: BaseFolder) -> None:
    adapter = random_adapter(tiny, 1)
    doubled = {name: 2 * delta for name, delta in deltas(adapter).items()}
    assert distance(deltas(scaled(adapter, 2.0)), doubled) < 1e-7


def test_row_spaces_do_not_depend_on_the_scale_of_the_factors(tiny: BaseFolder) -> None:
    adapter = random_adapter(tiny, 1)
    skewed = replace(
        adapter,
        tensors={n: t * (1e3 if "lora_A" in n else 1e-3) for n, t in adapter.tensors.items()},
    )
    for name, space in row_spaces(adapter).items():
        assert space.shape == (4, 32)
        torch.testing.assert_close(space @ space.T, torch.eye(4), rtol=0, atol=1e-5)
        delta = deltas(adapter)[name].float()
        torch.testing.assert_close(delta @ space.T @ space, delta, rtol=1e-4, atol=1e-6)
        other = row_spaces(skewed)[name]
        torch.testing.assert_close(other.T @ other, space.T @ space, rtol=0, atol=1e-4)


def test_the_row_space_of_no_change_is_empty(tiny: BaseFolder) -> None:
    untouched = detach(attach_new(load_encoder(tiny), AdapterSettings(r=4)))
    assert {space.shape for space in row_spaces(untouched).values()} == {(0, 32)}


def test_layers_of_unequal_rank_and_alpha_are_added_up_exactly(tiny: BaseFolder) -> None:
    torch.manual_seed(0)
    plain = random_adapter(tiny, 1)
    config = {
        **plain.config,
        "rank_pattern": {"layer.1.attention.self.query": 2},
        "alpha_pattern": {"value": 3.0},
    }
    shaped = {
        name: tensor[:2] if "1.attention.self.query.lora_A" in name
        else tensor[:, :2] if "1.attention.self.query.lora_B" in name
        else tensor
        for name, tensor in plain.tensors.items()
    }  # fmt: skip
    uneven = Adapter(config, {name: tensor.contiguous() for name, tensor in shaped.items()})
    both = concatenate(uneven, plain)
    assert distance(deltas(both), {n: d + deltas(plain)[n] for n, d in deltas(uneven).items()}) < 1e-6
    # PEFT agrees on the scalings: merging one after the other gives the same weights.
    merged = [attach(load_encoder(tiny), one, trainable=False).merge_and_unload() for one in (both, uneven)]
    second = attach(merged[1], plain, trainable=False).merge_and_unload()
    for name, tensor in second.state_dict().items():
        torch.testing.assert_close(merged[0].state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [AdapterSettings(r=4, use_dora=True), AdapterSettings(type="oft")])
def test_what_is_not_plain_lora_cannot_be_added_up(tiny: BaseFolder, settings: AdapterSettings) -> None:
    other = detach(attach_new(load_encoder(tiny), settings))
    with pytest.raises(TrainingFailed, match="only plain LoRA") as caught:
        concatenate(random_adapter(tiny, 1), other)
    assert caught.value.code == "adapters_differ"
