"""Handwritten digits (scikit-learn's 8×8 pictures) as text, and a small MLP that the engine takes for an encoder.

A picture is the text of its 64 pixel values, "0 0 5 13 …". A word-level tokenizer makes each value its own
token id, so `input_ids / 16` is the picture again, and the MLP reads that. So digits go through the very code
that texts go through.

Two bases: `random` is freshly initialised and is trained *whole*: a LoRA of full rank (64) on both layers reaches
every change of every weight. `pretrained` is the same MLP trained as a denoising autoencoder on pictures that no
task uses and without their labels; it stays frozen under a LoRA of low rank, as language models do.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from bench.streams import CACHE, Row, Stream, Task
from workers.training.contract import AdapterSettings, BaseFolder, TrainingSettings
from workers.training.folders import whole_folder

PIXELS = 64
BRIGHTEST = 16
LAYERS = (128, 64)
TASKS = 5
HELD_FOR_PRETRAINING = 500
EVAL_ROWS = 400
TRAIN_ROWS = 600
CAPACITY = 100


class DigitsConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """The shape of the MLP: its layers' widths."""

    model_type = "digits-mlp"

    def __init__(self, widths: Sequence[int] = LAYERS, **options: Any) -> None:
        super().__init__(**options)
        self.widths = list(widths)
        self.hidden_size = self.widths[-1]
        self.max_position_embeddings = PIXELS


class DigitsMlp(PreTrainedModel):  # type: ignore[misc]  # as above
    """Linear layers with ReLU over the pixel values; the whole picture is one position of hidden states."""

    config_class = DigitsConfig

    def __init__(self, config: DigitsConfig) -> None:
        super().__init__(config)
        sizes = [PIXELS, *config.widths]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Hidden states [rows, 1, width] of pixel values [rows, 64]; there is nothing to mask."""
        hidden = input_ids.to(self.dtype).unsqueeze(1) / BRIGHTEST
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return BaseModelOutput(last_hidden_state=hidden)


AutoConfig.register(DigitsConfig.model_type, DigitsConfig, exist_ok=True)
AutoModel.register(DigitsConfig, DigitsMlp, exist_ok=True)


def split_stream(seed: int, *, lora: bool = False, quick: bool = False) -> Stream:
    """Class-incremental: five tasks of two new digits each; which two, by `seed`."""
    digits = np.random.default_rng([seed, 10]).permutation(10).reshape(TASKS, 2)
    train, judged = labelled_pictures(seed)
    tasks = [
        Task(f"digits-{a}{b}", of_labels(train, {str(a), str(b)}), of_labels(judged, {str(a), str(b)}))
        for a, b in digits.tolist()
    ]
    return digits_stream("digits-split", tasks, lora=lora, quick=quick)


def permuted_stream(seed: int, *, lora: bool = False, quick: bool = False) -> Stream:
    """Domain-incremental: all ten digits in every task, the pixels in another fixed order in each but the first."""
    generator = np.random.default_rng([seed, 11])
    orders = [np.arange(PIXELS), *(generator.permutation(PIXELS) for _ in range(TASKS - 1))]
    train, judged = labelled_pictures(seed)
    tasks = [
        Task(f"pixels-{number}", reordered(train, order), reordered(judged, order))
        for number, order in enumerate(orders, start=1)
    ]
    return digits_stream("digits-permuted", tasks, lora=lora, quick=quick)


def digits_stream(name: str, tasks: Sequence[Task], *, lora: bool, quick: bool) -> Stream:
    """The stream of these tasks on the random base trained whole, or on the pretrained one with LoRA."""
    rank = 8 if lora else PIXELS
    settings = TrainingSettings(
        epochs=6, batch_size=16, learning_rate=1e-3, head_learning_rate=5e-3, max_length=PIXELS,
        evaluation_batch_size=512,
    )  # fmt: skip
    return Stream(
        name=f"{name}-lora" if lora else name,
        task_type="text-classification",
        base=base_folder(pretrained=lora),
        tasks=tasks,
        capacity=CAPACITY,
        settings=replace(settings, epochs=2) if quick else settings,
        adapter=AdapterSettings(
            r=rank, alpha=float(rank), max_rank=PIXELS, target_modules=("layers.0", "layers.1")
        ),
    )


def labelled_pictures(seed: int) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
    """The pictures that tasks may use, as (pixels, label), shuffled by `seed` and cut into train and eval."""
    pixels, labels = load_digits(return_X_y=True)
    pool = np.arange(HELD_FOR_PRETRAINING, len(pixels))
    pool = np.random.default_rng([seed, 12]).permutation(pool)
    pictures = [(pixels[index].astype(int), str(labels[index])) for index in pool]
    return pictures[EVAL_ROWS : EVAL_ROWS + TRAIN_ROWS], pictures[:EVAL_ROWS]


def of_labels(pictures: Sequence[tuple[Any, str]], wanted: set[str]) -> list[Row]:
    """The pictures of these labels as rows."""
    return [as_row(pixels, label) for pixels, label in pictures if label in wanted]


def reordered(pictures: Sequence[tuple[Any, str]], order: Any) -> list[Row]:
    """All pictures as rows, their pixels in this order."""
    return [as_row(pixels[order], label) for pixels, label in pictures]


def as_row(pixels: Any, label: str) -> Row:
    """A picture as a labelled text."""
    return {"text": " ".join(map(str, pixels)), "label": label}


def base_folder(*, pretrained: bool) -> BaseFolder:
    """The MLP and its tokenizer as a checkpoint on disk, made on first use."""
    name = f"digits-mlp-{'pretrained' if pretrained else 'random'}"
    folder = CACHE / "bases" / name
    if not (folder / "config.json").is_file():
        write_base(folder, pretrained=pretrained)
    return BaseFolder(name, str(folder))


def write_base(folder: Path, *, pretrained: bool) -> None:
    """Write the checkpoint; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitsMlp(DigitsConfig())
        if pretrained:
            denoise(model)
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        pixel_tokenizer().save_pretrained(temporary)


def denoise(model: DigitsMlp, *, steps: int = 2000) -> None:
    """Train the MLP to restore pictures from which a third of the pixels is gone.

    The decoder is thrown away. Labels are not used, and no picture of the tasks is.
    """
    pictures = torch.tensor(load_digits().data[:HELD_FOR_PRETRAINING], dtype=torch.float32)
    decoder = nn.Linear(LAYERS[-1], PIXELS)
    optimiser = torch.optim.AdamW([*model.parameters(), *decoder.parameters()], lr=1e-3)
    for _ in range(steps):
        clean = pictures[torch.randint(len(pictures), (64,))]
        damaged = clean * (torch.rand_like(clean) > 1 / 3)
        restored = decoder(model(damaged).last_hidden_state[:, 0])
        loss = (restored - clean / BRIGHTEST).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def pixel_tokenizer() -> PreTrainedTokenizerFast:
    """One token per pixel value, the value its id."""
    vocabulary = {str(value): value for value in range(BRIGHTEST + 1)} | {"[PAD]": BRIGHTEST + 1}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[PAD]", model_max_length=PIXELS
    )
