"""Every strategy on every stream, over seeds: what is learnt, what is forgotten, and what it costs.

    python -m bench.forgetting [--streams …] [--strategies …] [--seeds 3] [--quick] [--jobs 2]
                               [--first-seed 0] [--parameters JSON] [--resume CELLS.jsonl] [--json PATH]

Each cell (stream, strategy, seed) runs in a process of its own, for its peak memory. With `--resume` finished
cells are kept in a file, one a line, and not run again; the same file serves a run that was interrupted or is
extended by seeds and strategies. It does not notice a change of code: start a new file then.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.cells import GENERAL_CHANGES, QUALITIES, STREAMS, TASK_TYPES, Cell, Result, run_all, spread, suits
from bench.perplexities import figures_of_perplexities, table_of_perplexities
from workers.strategies.catalogue import STRATEGIES

COSTS = ("seconds", "peak_megabytes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; returns 1 when a cell failed."""
    options = parsed(arguments)
    cells = [
        Cell(stream, strategy, seed, options.quick, options.parameters)
        for stream in options.streams
        for strategy in options.strategies
        if suits(strategy, stream)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
    ]
    results = measured(cells, jobs=options.jobs, resume=options.resume)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    for stream in options.streams:
        console.print(table_of(stream, results))
        for strategy in finished_language_models(stream, results):
            console.print(table_of_perplexities(stream, strategy, results))
    if options.json:
        options.json.write_text(json.dumps(as_json(results), indent=2) + "\n", encoding="utf-8")
    return int(any("error" in result for result in results.values()))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.forgetting", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--streams", type=names_among(STREAMS), default=list(STREAMS), metavar="A,B")
    parser.add_argument("--strategies", type=names_among(STRATEGIES), default=list(STRATEGIES), metavar="A,B")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="0; tune on others than those reported")
    parser.add_argument(
        "--parameters", default="", help="JSON: the strategies' parameters, to tune one of them"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small streams: does it run, roughly what comes out"
    )
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time (default 2)")
    parser.add_argument("--resume", type=Path, help="keep finished cells in this file and take them from it")
    parser.add_argument("--json", type=Path, help="write figures and raw results here")
    return parser.parse_args(arguments)


def names_among(known: dict[str, Any]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names."""

    def names(text: str) -> list[str]:
        wanted = text.split(",")
        unknown = sorted(set(wanted) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(
                f"there is no {', '.join(unknown)}; there are {', '.join(known)}"
            )
        return wanted

    return names


def measured(cells: Sequence[Cell], *, jobs: int, resume: Path | None) -> dict[Cell, Result]:
    """The result of each cell: taken from `resume` where it is there, else run now and added to it."""
    results = {cell: result for cell, result in kept_cells(resume).items() if cell in cells}
    for cell, result in run_all([cell for cell in cells if cell not in results], jobs=jobs):
        results[cell] = result
        keep(resume, cell, result, left=len(cells) - len(results))
    return results


def kept_cells(resume: Path | None) -> dict[Cell, Result]:
    """The cells finished in earlier runs."""
    if resume is None or not resume.exists():
        return {}
    lines = map(json.loads, resume.read_text(encoding="utf-8").splitlines())
    return {Cell(**line["cell"]): line["result"] for line in lines}


def keep(resume: Path | None, cell: Cell, result: Result, *, left: int) -> None:
    """Say how a cell ended, and write it down for a later run unless it failed."""
    say(cell, result, left=left)
    if resume and "error" not in result:
        with resume.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"cell": asdict(cell), "result": result}) + "\n")


def say(cell: Cell, result: Result, *, left: int) -> None:
    """One line of progress."""
    outcome = result.get("error") or (
        f"accuracy {result['average_accuracy']:.3f}, forgetting {result['forgetting']:+.3f}, "
        f"{result['seconds']:.0f} s of training"
    )
    print(
        f"{cell.stream} {cell.strategy} seed {cell.seed}: {outcome} ({left} left)",
        file=sys.stderr,
        flush=True,
    )


def table_of(stream: str, results: dict[Cell, Result]) -> Table:
    """Mean ± standard deviation over seeds, a strategy per row, the best average accuracy first."""
    columns = columns_of(stream)
    unit = ": nats per token" if stream in TASK_TYPES else ""
    table = Table(title=stream + unit, title_justify="left")
    table.add_column("strategy", no_wrap=True)
    for column in columns:
        table.add_column(column.replace("_", " ").replace("percent", "%"), justify="right")
    rows = {strategy: over_seeds(results, stream, strategy) for strategy in strategies_in(results, stream)}
    for strategy, row in sorted(
        rows.items(), key=lambda item: -item[1].get("average_accuracy", (-math.inf,))[0]
    ):
        table.add_row(strategy, *(in_words(column, row.get(column)) for column in columns))
    return table


def in_words(column: str, value: tuple[float, float] | None) -> str:
    """A mean and standard deviation as text."""
    if value is None:
        return "failed"
    digits_after = 3 if column in QUALITIES else 0 if column == "peak_megabytes" else 1
    return f"{value[0]:.{digits_after}f} ± {value[1]:.{digits_after}f}"


def columns_of(stream: str) -> tuple[str, ...]:
    """What the table and the figures hold of each strategy."""
    return (*QUALITIES, *(GENERAL_CHANGES if stream in TASK_TYPES else ()), *COSTS)


def finished_language_models(stream: str, results: dict[Cell, Result]) -> list[str]:
    """The strategies that ran on this stream, if it is one of a language model's, and failed on no seed."""
    return [
        strategy
        for strategy in strategies_in(results, stream)
        if stream in TASK_TYPES and over_seeds(results, stream, strategy)
    ]


def strategies_in(results: dict[Cell, Result], stream: str) -> list[str]:
    """The strategies that ran on this stream."""
    return list(dict.fromkeys(cell.strategy for cell in sorted(results) if cell.stream == stream))


def over_seeds(results: dict[Cell, Result], stream: str, strategy: str) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of each quantity over the seeds; empty when a seed failed."""
    runs = [result for cell, result in results.items() if (cell.stream, cell.strategy) == (stream, strategy)]
    if any("error" in run for run in runs):
        return {}
    return {column: spread([run[column] for run in runs]) for column in columns_of(stream)}


def as_json(results: dict[Cell, Result]) -> dict[str, Any]:
    """The flat `figures`, the machine they were taken on, and every cell."""
    return {
        "figures": figures_of(results),
        "machine": {"cores": os.cpu_count(), "torch": torch.__version__, "gpu": torch.cuda.is_available()},
        "cells": [{**asdict(cell), **result} for cell, result in sorted(results.items())],
    }


def figures_of(results: dict[Cell, Result]) -> dict[str, float]:
    """`STREAM.STRATEGY.QUANTITY.mean` and `.std`, and how far the best strategy but `joint` is from `joint`."""
    figures: dict[str, float] = {}
    for stream in dict.fromkeys(cell.stream for cell in results):
        rows = {
            strategy: over_seeds(results, stream, strategy) for strategy in strategies_in(results, stream)
        }
        for strategy, row in rows.items():
            for quantity, (mean, deviation) in row.items():
                figures[f"{stream}.{strategy}.{quantity}.mean"] = mean
                figures[f"{stream}.{strategy}.{quantity}.std"] = deviation
        for strategy in finished_language_models(stream, results):
            figures |= figures_of_perplexities(stream, strategy, results)
        upper = rows.pop("joint", {})
        finished = [row for row in rows.values() if row]
        if upper and finished and stream not in TASK_TYPES:  # log-likelihoods have no points
            best = max(finished, key=lambda row: row["average_accuracy"])
            figures[f"{stream}.best.points_below_joint"] = 100 * (
                upper["average_accuracy"][0] - best["average_accuracy"][0]
            )
            figures[f"{stream}.best.forgetting_points"] = 100 * best["forgetting"][0]
            # With new labels in every task accuracy falls without any forgetting: there are more to mistake one for.
            figures[f"{stream}.best.forgetting_points_beyond_joint"] = 100 * (
                best["forgetting"][0] - upper["forgetting"][0]
            )
    return figures


if __name__ == "__main__":
    sys.exit(main())
