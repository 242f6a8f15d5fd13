"""One cell of `bench.forgetting`: a stream, a strategy and a seed, measured in a process of its own."""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from bench import digits, news, skills
from bench.lineage import Lineage, learn
from bench.streams import Stream
from workers.strategies.catalogue import STRATEGIES

Result = dict[str, Any]

MEGABYTE = 2**20
GENERAL_CHANGES = ("general_perplexity_change_percent", "highest_general_perplexity_change_percent")
QUALITIES = ("average_accuracy", "forgetting", "backward_transfer", "learning_accuracy")


class MakeStream(Protocol):
    """Makes one stream of a kind: its rows and their order come from the seed."""

    def __call__(self, seed: int, *, quick: bool = False) -> Stream:
        """The stream of this seed; a small one when `quick`."""


def with_lora(make: Callable[..., Stream]) -> MakeStream:
    """The same digits on the pretrained MLP under a LoRA of low rank."""

    def made(seed: int, *, quick: bool = False) -> Stream:
        return make(seed, lora=True, quick=quick)

    return made


STREAMS: dict[str, MakeStream] = {
    "digits-split": digits.split_stream,
    "digits-permuted": digits.permuted_stream,
    "digits-split-lora": with_lora(digits.split_stream),
    "digits-permuted-lora": with_lora(digits.permuted_stream),
    "newsgroups": news.class_stream,
    "newsgroups-domains": news.domain_stream,
    "causal-lm": skills.stream,
    "causal-lm-bare": skills.bare_stream,
}
TASK_TYPES = dict.fromkeys(
    ("causal-lm", "causal-lm-bare"), "causal-lm"
)  # every other stream is a classification


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One lineage to measure. `parameters` is JSON, or empty for those that the stream gives the strategy."""

    stream: str
    strategy: str
    seed: int
    quick: bool
    parameters: str = ""


def suits(strategy: str, stream: str) -> bool:
    """Whether the strategy takes this kind of stream."""
    return TASK_TYPES.get(stream, "text-classification") in STRATEGIES[strategy].task_types


def run_all(cells: Sequence[Cell], *, jobs: int) -> Iterator[tuple[Cell, Result]]:
    """Run cells in fresh processes, `jobs` at a time; yields each as it ends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["workers.training.preload", "bench.cells"])
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        running: dict[Future[Result], Cell] = {pool.submit(run_cell, cell, threads): cell for cell in cells}
        for future in as_completed(running):
            try:
                result = future.result()
            except Exception as error:  # one cell's failure is a result, not the end
                result = {"error": f"{type(error).__name__}: {error}"}
            yield running[future], result


def run_cell(cell: Cell, threads: int) -> Result:
    """Learn one stream with one strategy."""
    torch.set_num_threads(threads)
    stream = STREAMS[cell.stream](cell.seed, quick=cell.quick)
    with tempfile.TemporaryDirectory(prefix="palimpsest-bench-") as folder:
        began = time.monotonic()
        lineage = learn(
            stream, cell.strategy, seed=cell.seed, folder=Path(folder),
            parameters=json.loads(cell.parameters) if cell.parameters else None,
        )  # fmt: skip
    return {
        **{quality: getattr(lineage.summary, quality) for quality in QUALITIES},
        "seconds": lineage.seconds,
        "peak_megabytes": lineage.peak_memory_bytes / MEGABYTE,
        "wall_seconds": time.monotonic() - began,
        "tasks": lineage.tasks,
        "matrix": lineage.matrix,
        **perplexities(lineage),
    }


def perplexities(lineage: Lineage) -> Result:
    """A language model's perplexities and, in percent of the base's, what the last and the worst version added to that
    of general text; nothing for a classifier."""
    if lineage.perplexity is None:
        return {}
    base, *versions = (row[lineage.tasks.index("general")] for row in lineage.perplexity)
    changes = [100 * (version / base - 1) for version in versions if version and base]
    return {
        "perplexity": lineage.perplexity,
        **dict(zip(GENERAL_CHANGES, (changes[-1], max(changes)), strict=True)),
    }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, the latter 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
