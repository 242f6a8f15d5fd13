"""What an update costs beside training and evaluation: queue, claim, rows, artifact, scores, verdict, commit.

`python -m bench.overhead [--quick] [--json PATH]`. Starts the embedded stack, warms the worker with one update that
does not count, then posts tiny updates one after another. The overhead of one is the time from sending the POST
to seeing a terminal state, less the seconds the version's statistics give for training and evaluation.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.client import FINISHED, Client, Json
from service.embedded import Stack

MODEL = "overhead"
POLL_SECONDS = 0.05
TARGET_SECONDS = 3.0
WORDS = {"sport": "goal match team league player score", "space": "orbit rocket moon launch planet satellite"}
TRAINING: Json = {"epochs": 1, "max_length": 16, "batch_size": 8}

console = Console(highlight=False)
Parts = Mapping[str, float]


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three updates instead of ten")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-overhead-") as folder,
        Stack(Path(folder) / "state") as stack,
    ):
        runs = measure(Client(stack.url, stack.api_key), updates=3 if options.quick else 10)
    figures = {f"{part}_seconds": statistics.median(run[part] for run in runs) for part in runs[0]}
    show(runs)
    if options.json:
        options.json.write_text(json.dumps({"figures": figures, "runs": runs}, indent=2) + "\n")


def measure(client: Client, *, updates: int) -> list[Parts]:
    """The parts of each update's time, in the order posted."""
    client.post("/models", {"name": MODEL, "base_model": "minilm-l6", "task_type": "text-classification"})
    measured = [timed_update(client, number) for number in range(updates + 1)]
    return measured[1:]  # the first one waits for the worker to load its libraries


def timed_update(client: Client, number: int) -> Parts:
    """Teach one more task of a few rows; returns where the time went, in seconds."""
    task = f"task-{number}"
    client.put(f"/models/{MODEL}/tasks/{task}")
    client.stream_examples(MODEL, task, rows(number), on_error="abort")
    request = {"tasks": [task], "training": TRAINING, "promotion": "always"}
    began = time.monotonic()
    update = client.post(f"/models/{MODEL}/updates", request)
    while update["status"] not in FINISHED:
        time.sleep(POLL_SECONDS)
        update = client.get(f"/updates/{update['id']}")
    total = time.monotonic() - began
    if update["status"] != "promoted":
        raise RuntimeError(f"update {update['id']} ended {update['status']}: {update['error']}")
    spent = client.get(f"/models/{MODEL}/versions/{update['version']}")["statistics"]
    working = spent["train_seconds"] + spent["evaluation_seconds"]
    return {
        "overhead": total - working,
        "waiting": seconds_between(update, "created_at", "started_at"),
        "training": spent["train_seconds"],
        "evaluation": spent["evaluation_seconds"],
        "total": total,
    }


def seconds_between(update: Json, first: str, last: str) -> float:
    """Seconds between two of an update's times."""
    return (datetime.fromisoformat(update[last]) - datetime.fromisoformat(update[first])).total_seconds()


def rows(number: int) -> Iterator[Json]:
    """Two labels' rows, eight to learn from and four to be judged on each, no two alike."""
    for label, words in WORDS.items():
        for turn in range(12):
            split = "train" if turn < 8 else "eval"
            yield {"text": f"{words} number {number} {turn}", "label": label, "split": split}


def show(runs: list[Parts]) -> None:
    """Print the parts of every update, and their medians."""
    table = Table(title="One tiny update, in seconds", title_justify="left")
    table.add_column("update", justify="right")
    for part in runs[0]:
        table.add_column(part, justify="right")
    for number, run in enumerate(runs, start=1):
        table.add_row(str(number), *(f"{value:.2f}" for value in run.values()))
    medians = (statistics.median(run[part] for run in runs) for part in runs[0])
    table.add_row("median", *(f"{value:.2f}" for value in medians), style="bold")
    console.print(table)
    console.print(f"Overhead is to stay below {TARGET_SECONDS:.0f} s.")


if __name__ == "__main__":
    main()
