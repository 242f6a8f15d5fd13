"""Adapters of plain PEFT made versions: every kind, by the child's own hand. A tiny base, nothing mocked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, OFTConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from workers.training.contract import AdapterSettings, BaseFolder, TrainingSettings, TrainRequest
from workers.training.errors import TrainingFailed
from workers.training.folders import write_json
from workers.training.importing import IMPORT, origin_of
from workers.training.loop import train
from workers.training.versions import read_version

LAYERS = ["query", "value"]


def saved(base: BaseFolder, config: Any, folder: Path, *, labels: int = 2) -> Path:
    """The folder of an adapter with drawn weights, and of a head where there are labels."""
    torch.manual_seed(5)
    kind = AutoModel if labels else AutoModelForCausalLM
    model = get_peft_model(kind.from_pretrained(base.folder), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    if labels:
        head = {"weight": torch.randn(labels, 32), "bias": torch.randn(labels)}
        save_file(head, folder / "head.safetensors")
        (folder / "labels.json").write_text(json.dumps([f"label {n}" for n in range(labels)]))
    return folder


def request(
    base: BaseFolder, upload: Path, adapter: AdapterSettings | None = None, **fields: Any
) -> TrainRequest:
    given: dict[str, Any] = {"task_type": "text-classification", "labels": ("label 0", "label 1"), **fields}
    return TrainRequest(
        base=base, adapter=adapter or AdapterSettings(), strategy=IMPORT, settings=TrainingSettings(max_length=32),
        upload=str(upload), fresh="", output=str(upload.parent / "version"), checkpoints=str(upload.parent / "none"), **given,
    )  # fmt: skip


def refusal(asked: TrainRequest, quietly: dict[str, Any]) -> str:
    with pytest.raises(TrainingFailed) as failure:
        train(asked, **quietly)
    assert not Path(asked.output).exists()
    return failure.value.code


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (LoraConfig(r=4, target_modules=LAYERS, lora_dropout=0.2), AdapterSettings(dropout=0.1)),
        (LoraConfig(r=4, target_modules=LAYERS, use_rslora=True), AdapterSettings()),
        (LoraConfig(r=4, target_modules=["key"], rank_pattern={"layer.1.attention.self.key": 2}), AdapterSettings()),
        (LoraConfig(r=4, target_modules=LAYERS, use_dora=True), AdapterSettings(use_dora=True)),
        (OFTConfig(oft_block_size=8, target_modules=LAYERS, use_cayley_neumann=False), AdapterSettings(type="oft")),
    ],
    ids=["lora", "rslora", "rank_pattern", "dora", "oft"],
)  # fmt: skip
def test_every_kind_is_written_as_it_came(
    tiny: BaseFolder, tmp_path: Path, quietly: dict[str, Any], config: Any, settings: AdapterSettings
) -> None:
    upload = saved(tiny, config, tmp_path / "upload")
    asked = request(tiny, upload, settings)
    result = train(asked, **quietly)
    assert (result.steps, result.labels) == (0, ("label 0", "label 1"))
    version = read_version(Path(asked.output), tiny)
    given = load_file(upload / "adapter_model.safetensors")
    assert version.adapter.tensors.keys() == given.keys()
    assert all(torch.equal(version.adapter.tensors[name], given[name]) for name in given)
    assert version.head is not None
    assert torch.equal(version.head.weight, load_file(upload / "head.safetensors")["weight"])
    assert version.adapter.config.get("lora_dropout", settings.dropout) == settings.dropout
    assert version.states == {}


def test_half_precision_is_widened_without_a_change_of_value(
    tiny: BaseFolder, tmp_path: Path, quietly: dict[str, Any]
) -> None:
    upload = saved(tiny, LoraConfig(r=4, target_modules=LAYERS), tmp_path / "upload")
    half = {
        name: tensor.bfloat16() for name, tensor in load_file(upload / "adapter_model.safetensors").items()
    }
    save_file(half, upload / "adapter_model.safetensors")
    asked = request(tiny, upload)
    train(asked, **quietly)
    kept = read_version(Path(asked.output), tiny).adapter.tensors
    assert all(
        torch.equal(kept[name], half[name].float()) and kept[name].dtype == torch.float32 for name in half
    )


def test_another_kind_another_base_and_another_head_are_refused(
    tiny: BaseFolder, tmp_path: Path, quietly: dict[str, Any]
) -> None:
    upload = saved(tiny, LoraConfig(r=4, target_modules=LAYERS), tmp_path / "upload")
    assert refusal(request(tiny, upload, AdapterSettings(use_dora=True)), quietly) == "adapter_kind_differs"
    assert refusal(request(tiny, upload, labels=("a", "b", "c")), quietly) == "head_does_not_fit"
    for facts, code in (
        ({"base_model": {"name": "x", "sha256": "0" * 64}}, "wrong_base_model"),
        ({"pooling": "cls"}, "unsupported_head"),
        ({"head": {"normalise": "none", "scale": 1}}, "unsupported_head"),
    ):
        (upload / "version.json").write_text(json.dumps(facts))
        assert refusal(request(tiny, upload), quietly) == code


def test_what_a_message_quotes_of_an_upload_is_short_and_no_path(
    tiny: BaseFolder, tmp_path: Path, quietly: dict[str, Any]
) -> None:
    upload = saved(tiny, LoraConfig(r=4, target_modules=LAYERS), tmp_path / "upload")
    config = json.loads((upload / "adapter_config.json").read_text())
    (upload / "adapter_config.json").write_text(json.dumps(config | {"x" * 100_000: 1}))
    with pytest.raises(TrainingFailed, match="not supported") as options:
        train(request(tiny, upload), **quietly)
    (upload / "version.json").write_text(json.dumps({"pooling": "x" * 100_000}))
    with pytest.raises(TrainingFailed, match="pooling") as pooling:
        train(request(tiny, upload), **quietly)
    (upload / "version.json").unlink()
    (upload / "head.safetensors").unlink()
    with pytest.raises(TrainingFailed, match="cannot be read") as missing:
        train(request(tiny, upload), **quietly)
    for failure in (options, pooling, missing):
        assert len(failure.value.message) < 500
        assert str(tmp_path) not in failure.value.message


def test_what_an_upload_says_of_its_origin_is_kept_where_it_can_be_imported_again() -> None:
    kept = {"seed": 3, "lineage": {"update": "upd_1"}, "packages": [[1]]}
    assert origin_of(kept | {"max_length": 128}) == kept
    nested: Any = 1
    for _ in range(60):
        nested = [nested]
    for odd in (
        {"strategy": "x" * 70_000},
        {"seed": float("inf")},
        {"seed": "\ud800"},
        {"parameters": nested},
    ):
        assert origin_of(odd).keys() == {"left_out"}


def test_json_that_is_none_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "facts.json", {"loss": float("nan")})
    assert not (tmp_path / "facts.json").exists()


def test_numbers_too_large_for_float32_and_texts_too_long_for_the_base_are_refused(
    tiny: BaseFolder, tmp_path: Path, quietly: dict[str, Any]
) -> None:
    upload = saved(tiny, LoraConfig(r=4, target_modules=LAYERS), tmp_path / "upload")
    asked = request(tiny, upload)
    long = TrainRequest(
        **{
            **{name: getattr(asked, name) for name in asked.__slots__},
            "settings": TrainingSettings(max_length=999),
        }
    )
    assert refusal(long, quietly) == "sequence_too_long"
    save_file(
        {"weight": torch.full((2, 32), 1e300, dtype=torch.float64), "bias": torch.zeros(2)},
        upload / "head.safetensors",
    )
    assert refusal(asked, quietly) == "bad_numbers"


def test_a_language_models_adapter_is_imported_and_one_of_its_output_layer_is_not(
    tiny_lm: BaseFolder, tmp_path: Path, quietly: dict[str, Any]
) -> None:
    wanted: dict[str, Any] = {"task_type": "causal-lm", "labels": ()}
    upload = saved(
        tiny_lm,
        LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        tmp_path / "upload",
        labels=0,
    )
    asked = request(tiny_lm, upload, **wanted)
    train(asked, **quietly)
    version = read_version(Path(asked.output), tiny_lm, task_type="causal-lm")
    assert (version.head, version.labels) == (None, ())
    given = load_file(upload / "adapter_model.safetensors")
    assert all(torch.equal(version.adapter.tensors[name], given[name]) for name in given)
    output = saved(
        tiny_lm, LoraConfig(r=4, target_modules=["lm_head"]), tmp_path / "other" / "upload", labels=0
    )
    assert refusal(request(tiny_lm, output, **wanted), quietly) == "adapter_does_not_fit"
