"""The other side of `bench.training_speed`: what a competent user writes with transformers.Trainer and PEFT.

Dynamic padding, fused AdamW, the default sampler, bf16 where the GPU has it, no evaluation, nothing saved. The base,
the LoRA shape and the head's class are those of the engine.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

from workers.training.classifier import ClassificationHead
from workers.training.contract import TrainRequest

Row = Mapping[str, Any]


class Clock:
    """Wall and CPU seconds, pauses left out; it starts at once."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.go_on()

    def go_on(self) -> None:
        """Count from here on."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def pause(self) -> None:
        """Count up to here."""
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu


class PlainClassifier(nn.Module):
    """An adapted encoder, mean pooling and the head."""

    def __init__(self, encoder: Any, head: ClassificationHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss and the logits [rows, labels], as Trainer wants them."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits = self.head((hidden * mask).sum(1) / mask.sum(1))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def plain_model(request: TrainRequest, *, base_dropout: bool) -> PlainClassifier:
    """The model to train; `base_dropout=False` turns the frozen base's dropout off, which few people think of."""
    off = {} if base_dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = AutoModel.from_pretrained(request.base.folder, local_files_only=True, **off)
    shape = LoraConfig(
        r=request.adapter.r,
        lora_alpha=request.adapter.alpha,
        lora_dropout=request.adapter.dropout,
        target_modules=["query", "value"],
    )
    head = ClassificationHead(encoder.config.hidden_size, len(request.labels))
    return PlainClassifier(get_peft_model(encoder, shape), head)


def train_plainly(
    request: TrainRequest, rows: Sequence[Row], *, base_dropout: bool = True
) -> tuple[float, float]:
    """Train `rows` as `request` says; returns the wall and CPU seconds of tokenising and of the training loop."""
    torch.manual_seed(request.settings.seed)
    model = plain_model(request, base_dropout=base_dropout)
    tokenizer = AutoTokenizer.from_pretrained(request.base.folder, local_files_only=True)
    clock = Clock()
    encoded = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=request.settings.max_length
    )
    dataset = [
        {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": request.labels.index(row["label"]),
        }
        for ids, row in zip(encoded["input_ids"], rows, strict=True)
    ]
    clock.pause()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model, arguments(request, folder), train_dataset=dataset,
            data_collator=DataCollatorWithPadding(tokenizer),
        )  # fmt: skip
        clock.go_on()
        trainer.train()
        clock.pause()
    return clock.wall, clock.cpu


def arguments(request: TrainRequest, folder: str) -> TrainingArguments:
    """The settings that decide the time, taken from the request; nothing is logged or saved."""
    settings = request.settings
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
