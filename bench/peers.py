"""Our strategies and Avalanche's on the same digits, with the same network, budget and buffer, side by side.

    python -m bench.peers [--seeds 3] [--quick] [--jobs 2] [--resume CELLS.jsonl] [--json PATH]

Avalanche is installed into a folder of its own, `.cache/peers`, on first use, and runs in processes of its own; it
is no dependency of the project. What both sides share and where they differ is said in docs/benchmarks.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.cells import QUALITIES, STREAMS, Cell, Result, run_all, spread
from bench.forgetting import in_words, keep, kept_cells
from bench.streams import CACHE, Stream
from service.evaluations.metrics import summarise
from workers.strategies.catalogue import STRATEGIES

PACKAGES = (
    "avalanche-lib==0.6.0",
    "contourpy==1.3.3",
    "cycler==0.12.1",
    "dill==0.4.1",
    "fonttools==4.68.0",
    "kiwisolver==1.5.1",
    "lightning-utilities==0.15.3",
    "matplotlib==3.11.2",
    "pillow==13.0.0",
    "pyparsing==3.3.3",
    "torchmetrics==1.9.0",
    "torchvision==0.28.0",
    "tqdm==4.70.1",
)
"""With `--no-deps`: torch and numpy are there, and what Avalanche wants beyond these serves other things."""
FOLDER = CACHE / "peers"

PAIRS = {
    "Naive": "sequential",
    "Replay": "replay",
    "EWC": "ewc",
    "LwF": "lwf",
    "AGEM": "agem",
    "DER": "derpp",
}
"""Avalanche's strategies by our names. Its `DER` with β > 0 is DER++."""
PEER_STREAMS = ("digits-split", "digits-permuted")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns 1 when a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="run seeds 0 to N-1 (default 3)")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    parser.add_argument("--jobs", type=int, default=2, help="cells of ours at a time (default 2)")
    parser.add_argument("--resume", type=Path, help="keep finished cells in this file and take them from it")
    parser.add_argument("--json", type=Path, help="write figures and raw results here")
    options = parser.parse_args(arguments)
    install()
    results = measured(options)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    for stream in PEER_STREAMS:
        console.print(table_of(stream, results))
    if options.json:
        options.json.write_text(json.dumps(as_json(results), indent=2) + "\n", encoding="utf-8")
    return int(any("error" in result for result in results.values()))


def install() -> None:
    """Put Avalanche into its folder unless it is there. Raises RuntimeError when pip cannot."""
    stamp = FOLDER / "packages.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8").split() == list(PACKAGES):
        return
    print(f"installing {PACKAGES[0]} into {FOLDER} …", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]
    done = subprocess.run([*command, str(FOLDER), *PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip could not install {PACKAGES[0]}:\n{done.stderr}")
    stamp.write_text("\n".join(PACKAGES), encoding="utf-8")


def measured(options: argparse.Namespace) -> dict[Cell, Result]:
    """Every cell of both sides; a strategy of theirs is named with a capital, as they do."""
    names = [*PAIRS, *(name for name in PAIRS.values() if name in STRATEGIES)]
    cells = [
        Cell(stream, name, seed, options.quick)
        for stream in PEER_STREAMS
        for name in names
        for seed in range(options.seeds)
    ]
    results = {cell: result for cell, result in kept_cells(options.resume).items() if cell in cells}
    for cell in cells:
        if cell.strategy in PAIRS and cell not in results:
            results[cell] = run_peer(cell)
            keep(options.resume, cell, results[cell], left=len(cells) - len(results))
    ours = [cell for cell in cells if cell not in results]
    for cell, result in run_all(ours, jobs=options.jobs):
        results[cell] = result
        keep(options.resume, cell, result, left=len(cells) - len(results))
    return results


def run_peer(cell: Cell) -> Result:
    """Learn the cell's stream with Avalanche in a process of its own."""
    stream = STREAMS[cell.stream](cell.seed, quick=cell.quick)
    with tempfile.TemporaryDirectory(prefix="palimpsest-peers-") as folder:
        path, answer = Path(folder) / "stream.json", Path(folder) / "answer.json"
        path.write_text(json.dumps(as_plain(stream, cell)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "bench.avalanche_child", str(path), str(answer)],
            cwd=Path(__file__).parents[1], env=with_peers(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            return {"error": done.stderr.strip().rsplit("\n", 1)[-1]}
        outcome: Result = json.loads(answer.read_text(encoding="utf-8"))
    summary = summarise(outcome["matrix"], range(1, len(outcome["matrix"])))
    return {**outcome, **{quality: getattr(summary, quality) for quality in QUALITIES}}


def with_peers() -> dict[str, str]:
    """The environment with Avalanche's folder behind everything that is installed for the project."""
    path = os.pathsep.join(
        part for part in (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")) if part
    )
    return {**os.environ, "PYTHONPATH": path, "PEERS_FOLDER": str(FOLDER)}


def as_plain(stream: Stream, cell: Cell) -> dict[str, Any]:
    """What the child needs, as JSON."""
    return {
        "strategy": cell.strategy,
        "settings": asdict(replace(stream.settings, seed=cell.seed)),
        "capacity": stream.capacity,
        "base": stream.base.folder,
        "tasks": [{"train": list(task.train), "eval": list(task.eval)} for task in stream.tasks],
    }


def table_of(stream: str, results: dict[Cell, Result]) -> Table:
    """A pair per row: theirs, then ours, by average accuracy and forgetting."""
    table = Table(title=f"{stream}: Avalanche and ours", title_justify="left")
    for heading in (
        "theirs",
        "average accuracy",
        "forgetting",
        "seconds",
        "ours",
        "average accuracy",
        "forgetting",
        "seconds",
    ):
        table.add_column(heading, justify="left" if heading in ("theirs", "ours") else "right", no_wrap=True)
    for theirs, ours in PAIRS.items():
        table.add_row(theirs, *columns_of(results, stream, theirs), ours, *columns_of(results, stream, ours))
    return table


def columns_of(results: dict[Cell, Result], stream: str, strategy: str) -> list[str]:
    """Average accuracy, forgetting and seconds of one strategy as text."""
    row = over_seeds(results, stream, strategy)
    return [in_words(column, row.get(column)) for column in ("average_accuracy", "forgetting", "seconds")]


def over_seeds(results: dict[Cell, Result], stream: str, strategy: str) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of each quantity over the seeds; empty when one failed or none ran."""
    runs = [result for cell, result in results.items() if (cell.stream, cell.strategy) == (stream, strategy)]
    if not runs or any("error" in run for run in runs):
        return {}
    return {name: spread([run[name] for run in runs]) for name in (*QUALITIES, "seconds")}


def as_json(results: dict[Cell, Result]) -> dict[str, Any]:
    """The flat `figures` (`STREAM.avalanche.NAME.QUANTITY.mean`, `STREAM.ours.NAME.…`) and every cell."""
    figures = {}
    for stream, strategy in dict.fromkeys((cell.stream, cell.strategy) for cell in results):
        side = "avalanche" if strategy in PAIRS else "ours"
        for quantity, (mean, deviation) in over_seeds(results, stream, strategy).items():
            figures[f"{stream}.{side}.{strategy}.{quantity}.mean"] = mean
            figures[f"{stream}.{side}.{strategy}.{quantity}.std"] = deviation
    return {
        "figures": figures,
        "cells": [{**asdict(cell), **result} for cell, result in sorted(results.items())],
    }


if __name__ == "__main__":
    sys.exit(main())
