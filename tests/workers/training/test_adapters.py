"""Adapters of every kind: targets, round trips, plain PEFT folders, refusals."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from service.registry.schemas import AdapterSpec
from workers.training.adapters import (
    Adapter,
    attach,
    attach_new,
    delta_weights,
    detach,
    read_adapter,
    write_adapter,
)
from workers.training.base_models import load_encoder
from workers.training.contract import AdapterSettings, BaseFolder
from workers.training.errors import TrainingFailed


def random_adapter(base: BaseFolder, seed: int, *, r: int = 4, alpha: float = 8.0) -> Adapter:
    torch.manual_seed(seed)
    adapter = detach(attach_new(load_encoder(base), AdapterSettings(r=r, alpha=alpha)))
    return Adapter(
        adapter.config, {name: torch.randn_like(tensor) / 10 for name, tensor in adapter.tensors.items()}
    )


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


@pytest.mark.parametrize("targets", [r".*attention.*", r".*(query|LayerNorm)"])
def test_targets_that_match_more_than_linear_layers_are_an_error(tiny: BaseFolder, targets: str) -> None:
    with pytest.raises(TrainingFailed, match="also matches") as caught:
        attach_new(load_encoder(tiny), AdapterSettings(target_modules=targets))
    assert caught.value.code == "bad_target_modules"


@pytest.mark.parametrize("targets", ["no_such_layer", ("query", "qeury"), r"([", ()])
def test_targets_that_match_nothing_are_an_error(tiny: BaseFolder, targets: str | tuple[str, ...]) -> None:
    with pytest.raises(TrainingFailed) as caught:
        attach_new(load_encoder(tiny), AdapterSettings(target_modules=targets))
    assert caught.value.code == "bad_target_modules"


def test_an_adapter_of_another_shape_is_refused(tiny: BaseFolder) -> None:
    adapter = random_adapter(tiny, 1)
    cut = {name: tensor[:, :7] if "lora_A" in name else tensor for name, tensor in adapter.tensors.items()}
    with pytest.raises(TrainingFailed) as caught:
        attach(load_encoder(tiny), Adapter(adapter.config, cut), trainable=True)
    assert caught.value.code == "bad_version"


KINDS = {
    "lora": AdapterSettings(r=4, alpha=8.0),
    "rslora": AdapterSettings(r=4, alpha=8.0, use_rslora=True),
    "dora": AdapterSettings(r=4, alpha=8.0, use_dora=True),
    "oft": AdapterSettings(type="oft", oft_block_size=8),
}
IDS = torch.tensor([[101, 2000, 2001, 2002, 102]])


def hidden(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).last_hidden_state


def disturbed(base: BaseFolder, settings: AdapterSettings) -> Any:
    """A wrapped encoder whose adapter has moved from its start."""
    torch.manual_seed(5)
    model = attach_new(load_encoder(base), settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 10)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_has_no_effect_yet_and_trains(tiny: BaseFolder, kind: str) -> None:
    model = attach_new(load_encoder(tiny), KINDS[kind])
    torch.testing.assert_close(hidden(model), hidden(load_encoder(tiny)), rtol=1e-5, atol=1e-5)
    model(IDS).last_hidden_state.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_taking_off_writing_reading_and_merging(
    tiny: BaseFolder, tmp_path: Path, kind: str
) -> None:
    model = disturbed(tiny, KINDS[kind])
    expected = hidden(model)
    assert not torch.allclose(expected, hidden(load_encoder(tiny)), atol=1e-3)
    write_adapter(detach(model), tmp_path, base_name="tiny", revision=None)
    adapter = read_adapter(tmp_path)
    assert adapter.kind == ("lora" if kind == "rslora" else kind)
    again = attach(load_encoder(tiny), adapter, trainable=True)
    assert torch.equal(hidden(again), expected)
    taken = detach(again)
    assert all(torch.equal(tensor, adapter.tensors[name]) for name, tensor in taken.tensors.items())
    assert taken.tensors.keys() == adapter.tensors.keys()
    merged = attach(load_encoder(tiny), adapter, trainable=False).merge_and_unload()
    torch.testing.assert_close(hidden(merged), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_every_kind_from_its_folder_unchanged(tiny: BaseFolder, tmp_path: Path, kind: str) -> None:
    model = disturbed(tiny, KINDS[kind])
    write_adapter(detach(model), tmp_path, base_name="tiny", revision=None)
    loaded = PeftModel.from_pretrained(load_encoder(tiny), tmp_path)
    assert torch.equal(hidden(loaded), hidden(model))


def test_an_oft_adapter_rotates_exactly(tiny: BaseFolder) -> None:
    merged = disturbed(tiny, KINDS["oft"]).merge_and_unload().state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    before, after = load_encoder(tiny).state_dict()[name], merged[name]
    assert not torch.allclose(before, after, atol=1e-3)
    # A rotation of the inputs leaves W Wᵀ as it is.
    torch.testing.assert_close(after @ after.T, before @ before.T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (AdapterSettings(type="oft", oft_block_size=7), "'encoder.layer.0.attention.self.query'"),
        (AdapterSettings(type="oft", oft_block_size=64), "32 inputs"),
        (AdapterSettings(type="oft", use_dora=True), "options of LoRA"),
        (AdapterSettings(r=0), "between 1 and 512"),
        (AdapterSettings(r=513), "between 1 and 512"),
        (AdapterSettings(dropout=1.0), "dropout"),
    ],
)
def test_shapes_that_cannot_be_made_say_why(tiny: BaseFolder, settings: AdapterSettings, word: str) -> None:
    with pytest.raises(TrainingFailed, match=word) as caught:
        attach_new(load_encoder(tiny), settings)
    assert caught.value.code == "bad_adapter"


@pytest.mark.parametrize(
    "option",
    [
        {"bias": "all"}, {"modules_to_save": ["pooler"]}, {"init_lora_weights": "pissa"}, {"lora_bias": True},
        {"auto_mapping_of_tomorrow": {"module": "evil"}},
    ],
)  # fmt: skip
def test_options_that_change_what_the_tensors_mean_are_refused(
    tiny: BaseFolder, tmp_path: Path, option: dict[str, Any]
) -> None:
    adapter = random_adapter(tiny, 1)
    write_adapter(
        replace(adapter, config={**adapter.config, **option}), tmp_path, base_name="tiny", revision=None
    )
    with pytest.raises(TrainingFailed, match=next(iter(option))) as caught:
        read_adapter(tmp_path)
    assert caught.value.code == "bad_version"


def test_another_kind_of_adapter_is_refused(tiny: BaseFolder, tmp_path: Path) -> None:
    adapter = random_adapter(tiny, 1)
    write_adapter(
        replace(adapter, config={**adapter.config, "peft_type": "IA3"}),
        tmp_path,
        base_name="t",
        revision=None,
    )
    with pytest.raises(TrainingFailed, match="LoRA, DoRA or OFT"):
        read_adapter(tmp_path)


def test_the_engine_and_the_registry_describe_adapters_alike() -> None:
    spec, settings = AdapterSpec(), AdapterSettings()
    assert AdapterSettings(**spec.model_dump()) == settings
    assert spec.model_dump().keys() == asdict(settings).keys()
