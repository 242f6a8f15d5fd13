"""A language model's perplexities, version by version: on each skill, and on the text that its base had mastered."""

from collections.abc import Sequence

from rich.table import Table

from bench.cells import Cell, Result, spread


def table_of_perplexities(stream: str, strategy: str, results: dict[Cell, Result]) -> Table:
    """Mean ± standard deviation over seeds: a version per row, a task per column, general text last."""
    runs = runs_of(stream, strategy, results)
    table = Table(title=f"{stream}, {strategy}: perplexity", title_justify="left")
    for column in ("version", *runs[0]["tasks"]):
        table.add_column(column, justify="left" if column == "version" else "right", no_wrap=True)
    for number in range(len(runs[0]["perplexity"])):
        cells = (spread(values) for values in over_seeds(runs, number))
        table.add_row(
            name_of(number, runs[0]), *(f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in cells)
        )
    return table


def figures_of_perplexities(stream: str, strategy: str, results: dict[Cell, Result]) -> dict[str, float]:
    """`STREAM.STRATEGY.perplexity.VERSION.TASK.mean`, with `v0` for the base, and `.std`."""
    runs = runs_of(stream, strategy, results)
    figures: dict[str, float] = {}
    for number in range(len(runs[0]["perplexity"])):
        for task, values in zip(runs[0]["tasks"], over_seeds(runs, number), strict=True):
            name = f"{stream}.{strategy}.perplexity.v{number}.{task}"
            figures[f"{name}.mean"], figures[f"{name}.std"] = spread(values)
    return figures


def runs_of(stream: str, strategy: str, results: dict[Cell, Result]) -> list[Result]:
    """The results of one strategy's seeds."""
    return [result for cell, result in results.items() if (cell.stream, cell.strategy) == (stream, strategy)]


def over_seeds(runs: Sequence[Result], number: int) -> list[tuple[float, ...]]:
    """Version `number`'s perplexities: per task, one of every seed."""
    return list(zip(*(run["perplexity"][number] for run in runs), strict=True))


def name_of(number: int, run: Result) -> str:
    """The version's number and the task it learnt last."""
    return f"v{number} ({run['tasks'][number - 1]})" if number else "base"
