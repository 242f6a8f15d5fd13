"""Avalanche learns one stream of digits: `python -m bench.avalanche_child STREAM.json ANSWER.json`.

Started by `bench.peers` with Avalanche's folder in PEERS_FOLDER. The network is ours to the weight: the same
MLP, loaded from the same checkpoint and trained whole, under the same normalised head.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from transformers import AutoModel

import bench.digits  # noqa: F401 - registers the MLP with transformers
from workers.training.classifier import ClassificationHead

LABELS = 10
NEVER_USED = (
    "GPUtil", "gdown", "pytorchcv", "pytorchcv.model_provider", "pytorchcv.models", "pytorchcv.models.mobilenet",
    "qpsolvers", "torch.utils.tensorboard", "torch.utils.tensorboard.writer", "wandb",
)  # fmt: skip
"""What Avalanche imports at its top for downloads, loggers and strategies that are not compared here."""


class Network(nn.Module):
    """The MLP under the engine's head, with a row for each label that will ever come.

    Avalanche's DER compares logits of stored width with those of the moment, so the head must not grow.
    """

    def __init__(self, base: str) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(base, local_files_only=True)
        self.head = ClassificationHead(self.encoder.config.hidden_size, LABELS)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [rows, 10] of pixel values [rows, 64]."""
        logits: Tensor = self.head(self.encoder(input_ids=pixels).last_hidden_state[:, 0])
        return logits


def main() -> None:
    """Read the stream, learn it task by task, write the matrix and the seconds spent in training."""
    source, target = map(Path, sys.argv[1:])
    given = json.loads(source.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.manual_seed(given["settings"]["seed"])
    prepare_imports()
    from avalanche.benchmarks.scenarios.deprecated.generic_benchmark_creation import (
        create_generic_benchmark_from_tensor_lists,
    )

    pairs = {split: [as_tensors(task[split]) for task in given["tasks"]] for split in ("train", "eval")}
    benchmark = create_generic_benchmark_from_tensor_lists(
        train_tensors=pairs["train"], test_tensors=pairs["eval"], task_labels=[0] * len(given["tasks"])
    )
    network = Network(given["base"])
    strategy = make_strategy(given, network)
    matrix: list[list[float | None]] = [[None] * len(given["tasks"])]
    seconds = 0.0
    for number, experience in enumerate(benchmark.train_stream, start=1):
        began = time.monotonic()
        strategy.train_mb_size = fresh_rows_per_batch(given, number)
        strategy.train(experience, num_workers=0)
        seconds += time.monotonic() - began
        scores: list[float | None] = [accuracy(network, *pair) for pair in pairs["eval"][:number]]
        matrix.append(scores + [None] * (len(given["tasks"]) - number))
    target.write_text(json.dumps({"matrix": matrix, "seconds": seconds}), encoding="utf-8")


def prepare_imports() -> None:
    """Make Avalanche importable: its folder last on the path, and stand-ins for what is never used."""
    sys.path.append(os.environ["PEERS_FOLDER"])
    for name in NEVER_USED:
        sys.modules[name] = MagicMock()
    # A torchvision built for CUDA cannot load its operators beside a torch for the CPU, and importing it then
    # fails over two of them that nothing here calls.
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # as torch has it
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    prepare_imports.library = library  # type: ignore[attr-defined]  # the operators live as long as this does


def make_strategy(given: dict[str, Any], network: Network) -> Any:
    """Avalanche's strategy with our optimiser, rates, epochs, buffer and share of replayed rows."""
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import AGEM, EWC, LwF, Naive, Replay
    from avalanche.training.supervised.der import DER

    settings, capacity = given["settings"], given["capacity"]
    half, tasks = settings["batch_size"] // 2, len(given["tasks"])
    own = {
        "Naive": (Naive, {}),
        "Replay": (Replay, {"mem_size": capacity}),  # replays as many rows per step as are fresh
        "EWC": (EWC, {"ewc_lambda": 100.0, "mode": "online", "decay_factor": 1.0}),
        "LwF": (LwF, {"alpha": 1.0, "temperature": 2.0}),
        "AGEM": (AGEM, {"patterns_per_exp": capacity // tasks, "sample_size": half}),
        "DER": (DER, {"mem_size": capacity, "batch_size_mem": half, "alpha": 0.1, "beta": 0.5}),
    }
    make, parameters = own[given["strategy"]]
    optimiser = torch.optim.AdamW(
        [
            {"params": network.encoder.parameters(), "lr": settings["learning_rate"]},
            {"params": network.head.parameters(), "lr": settings["head_learning_rate"]},
        ],
        weight_decay=settings["weight_decay"],
    )
    return make(
        model=network, optimizer=optimiser, criterion=nn.CrossEntropyLoss(), train_epochs=settings["epochs"],
        train_mb_size=settings["batch_size"], evaluator=EvaluationPlugin(loggers=[]), **parameters,
    )  # fmt: skip


def fresh_rows_per_batch(given: dict[str, Any], number: int) -> int:
    """Half a batch is fresh where the other half is replayed; all of it for task 1 and for the others."""
    size: int = given["settings"]["batch_size"]
    return size // 2 if number > 1 and given["strategy"] in ("Replay", "DER", "AGEM") else size


def as_tensors(rows: list[dict[str, str]]) -> tuple[Tensor, Tensor]:
    """Pixels [rows, 64] and labels [rows]."""
    pixels = [[int(value) for value in row["text"].split()] for row in rows]
    return torch.tensor(pixels), torch.tensor([int(row["label"]) for row in rows])


@torch.inference_mode()
def accuracy(network: Network, pixels: Tensor, labels: Tensor) -> float:
    """The share of right answers."""
    return float((network.eval()(pixels).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
