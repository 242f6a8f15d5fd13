"""Whole causal-lm updates on a tiny decoder, and one on the real model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from workers.evaluation.runner import evaluate
from workers.strategies.catalogue import STRATEGIES
from workers.strategies.ewc import FisherMeter
from workers.training.adapters import adapted_layers
from workers.training.base_models import folder_sha256, load_decoder, load_tokenizer
from workers.training.batches import Pick
from workers.training.contract import (
    AdapterSettings,
    BaseFolder,
    EvaluateRequest,
    Outcomes,
    Progress,
    TrainRequest,
)
from workers.training.dequantising import plain_base
from workers.training.errors import Stopped, TrainingFailed
from workers.training.loop import train
from workers.training.packing import pack
from workers.training.preparation import prepare
from workers.training.versions import read_version
from workers.training.watching import Watch

RequestFor = Callable[..., TrainRequest]
EVERY_LAYER = AdapterSettings(
    r=16, alpha=32.0, target_modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
)
NOTHING = np.zeros(0, dtype=np.int64)
CAUSAL = sorted(name for name, strategy in STRATEGIES.items() if "causal-lm" in strategy.task_types)


def files(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.safetensors")}


def scored(base: BaseFolder, version: str | None, rows: str, quietly: Any, **changes: Any) -> Outcomes:
    return evaluate(
        replace(EvaluateRequest("causal-lm", base, version, rows, max_length=64), **changes), **quietly
    )


def with_plain_libraries(base: BaseFolder, version: str | None) -> Any:
    """The model as anybody loads it, float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype="float32")
    return (model if version is None else PeftModel.from_pretrained(model, version)).eval()


def test_a_version_is_a_plain_peft_adapter_without_head_or_labels(
    causal_request: RequestFor, tiny_lm: BaseFolder, quietly: Any
) -> None:
    request = causal_request("sequential")
    result = train(request, **quietly)
    assert sorted(path.name for path in Path(request.output).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "version.json",
    ]
    assert json.loads(Path(request.output, "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    version = read_version(Path(request.output), tiny_lm, task_type="causal-lm")
    assert (version.head, version.labels, result.labels) == (None, (), ())
    assert type(with_plain_libraries(tiny_lm, request.output)).__name__ == "PeftModelForCausalLM"


@pytest.mark.parametrize("strategy", CAUSAL)
def test_a_stopped_update_resumes_to_the_same_bytes(
    causal_request: RequestFor, causal_rows: Any, quietly: Any, strategy: str
) -> None:
    first = causal_request(strategy, output="first", rows=causal_rows(1))
    train(first, **quietly)
    common = {"parent": first.output, "rows": causal_rows(1, first_id=50), "buffer": causal_rows(1)[:6]}
    straight = causal_request(strategy, output="straight", **common)
    halted = causal_request(strategy, output="halted", **common)
    train(straight, **quietly)
    seen: list[Progress] = []
    with pytest.raises(Stopped):
        train(
            halted,
            on_progress=seen.append,
            should_stop=lambda: (
                "stop" if seen and seen[-1].phase == "training" and seen[-1].step >= 2 else None
            ),
        )
    train(halted, **quietly)
    assert files(halted.output) == files(straight.output)


def test_training_raises_the_likelihood_of_what_is_learnt(
    causal_request: RequestFor, causal_rows: Any, tiny_lm: BaseFolder, write_rows: Any, quietly: Any
) -> None:
    rows = causal_rows(1)
    request = causal_request("sequential", rows=rows, epochs=15, learning_rate=2e-2, adapter=EVERY_LAYER)
    train(request, **quietly)
    rows = write_rows("eval", rows)
    before, after = (scored(tiny_lm, version, rows, quietly) for version in (None, request.output))
    assert after.measures["perplexity"] < before.measures["perplexity"] / 4


@pytest.mark.parametrize("trained", [False, True])
def test_scores_are_those_of_plain_transformers(
    causal_request: RequestFor,
    causal_rows: Any,
    tiny_lm: BaseFolder,
    write_rows: Any,
    quietly: Any,
    trained: bool,
) -> None:
    request = causal_request("sequential", epochs=3, learning_rate=1e-2)
    if trained:
        train(request, **quietly)
    version = request.output if trained else None
    rows = [row for row in causal_rows(1) if "prompt" in row]
    outcomes = scored(tiny_lm, version, write_rows("eval", rows), quietly)
    model, tokenizer = with_plain_libraries(tiny_lm, version), load_tokenizer(tiny_lm)
    total = tokens = 0.0
    for row, grade in zip(rows, outcomes.graded, strict=True):
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            log_p = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        each = [float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
        assert grade == pytest.approx(sum(each) / len(each), abs=1e-4)
        total, tokens = total + sum(each), tokens + len(each)
    assert outcomes.measures["mean_log_likelihood"] == pytest.approx(total / tokens, abs=1e-4)
    assert outcomes.measures["perplexity"] == pytest.approx(np.exp(-total / tokens), rel=1e-3)


def test_exact_match_is_what_greedy_decoding_gives(
    causal_request: RequestFor, causal_rows: Any, tiny_lm: BaseFolder, write_rows: Any, quietly: Any
) -> None:
    rows = [row for row in causal_rows(1) if "prompt" in row]
    request = causal_request("sequential", rows=rows[:3], epochs=60, learning_rate=1e-2, adapter=EVERY_LAYER)
    train(request, **quietly)
    texts = [{"id": 90, "task": "t", "text": "Paris lies in France."}]
    outcomes = scored(tiny_lm, request.output, write_rows("eval", rows + texts), quietly)
    model, tokenizer = with_plain_libraries(tiny_lm, request.output), load_tokenizer(tiny_lm)
    found = []
    for row in rows:
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        written = model.generate(**prompt, do_sample=False, max_new_tokens=8)[
            0, prompt["input_ids"].shape[1] :
        ]
        found.append(tokenizer.decode(written) == row["completion"] + "<|im_end|>")
    assert outcomes.correct == (*found, False), "a plain text has no answer to match"
    assert 0 < sum(found) < len(rows), "the setting tells right from wrong"
    assert outcomes.measures["exact_match"] == pytest.approx(sum(found) / len(rows))
    assert outcomes.predicted == (-1,) * 6
    assert outcomes.confidence == pytest.approx(np.exp(outcomes.graded))


def test_an_answer_cut_at_the_maximum_length_is_not_exact(
    tiny_lm: BaseFolder, write_rows: Any, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": 1, "task": "t", "prompt": "a b", "completion": " c d e f g h"}]
    monkeypatch.setattr("torch.Tensor.argmax", lambda logits, *_: torch.full((len(logits),), 0))
    outcomes = scored(tiny_lm, None, write_rows("eval", rows), quietly, max_length=4)
    assert outcomes.correct == (False,)
    assert outcomes.measures["exact_match"] == 0.0


def test_an_eval_row_that_nothing_can_be_asked_of_takes_no_part(
    causal_rows: Any, tiny_lm: BaseFolder, write_rows: Any, quietly: Any
) -> None:
    rows = causal_rows(1)[:3]
    alone = scored(tiny_lm, None, write_rows("eval", rows), quietly)
    mute = {"id": 999, "task": "t", "text": "a"}
    outcomes = scored(tiny_lm, None, write_rows("more", [*rows, mute]), quietly)
    assert (outcomes.graded[-1], outcomes.correct[-1]) == (0.0, False)
    assert outcomes.measures == pytest.approx(alone.measures)
    assert scored(tiny_lm, None, write_rows("mute", [mute]), quietly).measures == {}


def test_base_and_versions_are_graded_on_the_same_tokens_whatever_they_trained_with(
    causal_request: RequestFor, tiny_lm: BaseFolder, write_rows: Any, quietly: Any
) -> None:
    request = causal_request("sequential", max_length=16, learning_rate=1e-12, epochs=1)
    train(request, **quietly)
    rows = write_rows("long", [{"id": 1, "task": "t", "text": "one two three four five six " * 8}])
    base, version = (
        scored(tiny_lm, folder, rows, quietly, max_length=None) for folder in (None, request.output)
    )
    # The version is the base still; a mean over its first 16 tokens would be another number.
    assert version.graded == pytest.approx(base.graded, abs=1e-4)
    assert scored(tiny_lm, None, rows, quietly, max_length=16).graded != pytest.approx(base.graded, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_scores_do_not_depend_on_the_batches(
    causal_rows: Any, tiny_lm: BaseFolder, write_rows: Any, quietly: Any, batch_size: int
) -> None:
    rows = write_rows("eval", causal_rows(2))
    reference = scored(tiny_lm, None, rows, quietly, batch_size=7)
    outcomes = scored(tiny_lm, None, rows, quietly, batch_size=batch_size)
    assert outcomes.graded == pytest.approx(reference.graded, abs=1e-5)
    assert outcomes.correct == reference.correct


def test_an_eval_set_of_texts_has_no_exact_match_and_an_empty_one_no_measures(
    tiny_lm: BaseFolder, write_rows: Any, quietly: Any
) -> None:
    texts = [{"id": 1, "task": "t", "text": "The sun rises in the east."}]
    assert scored(tiny_lm, None, write_rows("texts", texts), quietly).measures.keys() == {
        "perplexity",
        "mean_log_likelihood",
    }
    assert scored(tiny_lm, None, write_rows("none", []), quietly).measures == {}


def test_fisher_squares_the_gradient_of_an_examples_summed_log_likelihood(causal_request: RequestFor) -> None:
    request = causal_request("ewc")
    run, _ = prepare(request, STRATEGIES["ewc"]({}), Watch(lambda _: None, lambda: None))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in run.model.adapter_parameters():
            parameter.normal_(std=0.1)
    model = run.model.eval()
    batch = pack(run.fresh, run.fresh, Pick(np.array([0, 1, 2]), NOTHING, NOTHING), packed=False)
    meter = FisherMeter(model)
    with meter.attached():
        meter.add(model(batch), batch.labels, examples=3)
    weights = {name: layer.base_layer.weight for name, layer in adapted_layers(model.encoder).items()}
    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    for row in range(3):
        alone = pack(run.fresh, run.fresh, Pick(np.array([row]), NOTHING, NOTHING), packed=False)
        likelihood = -functional.cross_entropy(model(alone), alone.labels, reduction="sum")
        for name, gradient in zip(
            weights, torch.autograd.grad(likelihood, list(weights.values())), strict=True
        ):
            expected[name] += gradient.square() / 3
    measured = meter.mean()
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(measured[name], value, rtol=1e-3, atol=1e-9)


def test_requests_that_do_not_fit_say_why(
    causal_request: RequestFor, request_for: RequestFor, tiny_lm: BaseFolder, write_rows: Any, quietly: Any
) -> None:
    classified = request_for("sequential", ["sport", "space"], output="classified")
    train(classified, **quietly)
    for request, code in (
        (causal_request("sequential", parent=classified.output), "bad_version"),
        (replace(causal_request("sequential"), labels=("a",)), "bad_labels"),
        (causal_request("sequential", rows=[], output="empty"), "no_fresh_rows"),
        (causal_request("sequential", max_length=4096), "sequence_too_long"),
        (causal_request("sequential", base=replace(tiny_lm, gguf="x.gguf", cache="y")), "base_model_missing"),
    ):
        with pytest.raises(TrainingFailed) as caught:
            train(request, **quietly)
        assert caught.value.code == code
    base_alone = EvaluateRequest("text-classification", classified.base, None, write_rows("eval", []))
    with pytest.raises(TrainingFailed, match="no head"):
        evaluate(base_alone, **quietly)


def test_a_damaged_quantised_file_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF nothing of the kind")
    base = BaseFolder("broken", str(tmp_path), gguf="model.gguf", cache=str(tmp_path / "cache"))
    with pytest.raises(TrainingFailed) as caught:
        plain_base(base)
    assert caught.value.code == "base_model_unreadable"
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_the_dequantised_model_knows_english(smollm2: BaseFolder, write_rows: Any, quietly: Any) -> None:
    text = "Paris is the capital of France, and it is one of the most visited cities in the world."
    outcomes = scored(smollm2, None, write_rows("eval", [{"id": 1, "task": "t", "text": text}]), quietly)
    assert outcomes.measures["perplexity"] < 60
    assert len(folder_sha256(Path(smollm2.folder))) == 64
    assert load_decoder(smollm2).lm_head.weight.dtype == torch.float32


@pytest.mark.slow
def test_the_real_model_learns_answers_at_the_default_rate(
    causal_request: RequestFor, smollm2: BaseFolder, write_rows: Any, quietly: Any
) -> None:
    names = ("Arlo", "Bex", "Cato", "Dov", "Esme", "Faye", "Gus", "Hale", "Ines", "Jude")
    rows = [
        {
            "id": i,
            "task": "t",
            "prompt": f"Desk of {name}:",
            "completion": f" {'north' if i % 2 else 'south'} wing",
        }
        for i, name in enumerate(names * 2)
    ]
    request = causal_request("sequential", base=smollm2, rows=rows, epochs=4, learning_rate=5e-4)
    result = train(request, **quietly)
    first, last = result.losses[0][1], result.losses[-1][1]
    assert last < first - 1, result.losses
    outcomes = scored(smollm2, request.output, write_rows("eval", rows[:10]), quietly)
    base = scored(smollm2, None, write_rows("eval", rows[:10]), quietly)
    assert outcomes.measures["mean_log_likelihood"] > base.measures["mean_log_likelihood"] + 1
