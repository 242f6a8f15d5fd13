"""Forecasts beside what came: how well is forgetting told before an update is trained?

    python -m bench.forecast [--quick] [--streams A,B] [--strategies A,B] [--seeds 3] [--first-seed 0]
                             [--resume CELLS.jsonl] [--json PATH]

Every stream is learnt task by task through the real engine. Before each update but the first, a probe of a twentieth of its steps is
taken, as the service takes it, and the forecast made from it and the updates before; then the update is trained and scored. With
`--quick`: two strategies, two seeds of the digits and one of the newsgroups, these small. `--resume` keeps finished cells in a file.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from bench.cells import STREAMS, Cell
from bench.forgetting import names_among
from bench.lineage import Learner, score
from service.forecasts.estimating import Past, Signs, estimate, updates_needed
from workers.evaluation.kept import forget
from workers.forecasts import label_counts, overlap, signs_of
from workers.strategies.catalogue import STRATEGIES
from workers.training.contract import Outcomes
from workers.training.probing import probe

SHARE = 0.05
LEVEL = 0.75
"""What three past updates suffice for: the streams have five tasks."""
DIGITS = ("digits-split", "digits-permuted", "digits-split-lora", "digits-permuted-lora")
NEWS = ("newsgroups", "newsgroups-domains")
QUICK_STRATEGIES = ("sequential", "replay")
ALL_STRATEGIES = ("sequential", "replay", "ewc", "lwf")


@dataclass(frozen=True, slots=True)
class Observation:
    """One old task of one update: what was seen before it, and what it changed."""

    cell: Cell
    update: int
    task: int
    steps: int
    total_steps: int
    signs: Signs
    change: float

    @property
    def past(self) -> Past:
        """The same as the forecast of a later update takes it."""
        return Past(str(self.update), self.signs, self.change)


@dataclass(frozen=True, slots=True)
class Forecast:
    """An observation beside what was forecast of it; `by_past` from the past alone, without looking at the new data."""

    seen: Observation
    change: float
    by_past: float
    interval: tuple[float, float] | None


PREDICTORS: Mapping[str, Callable[[Forecast], float]] = {
    "forecast": lambda one: -one.change,
    "past_alone": lambda one: -one.by_past,
    "probe_alone": lambda one: -one.seen.signs.score_change,
    "loss_alone": lambda one: one.seen.signs.new_loss,
    "overlap_alone": lambda one: one.seen.signs.label_overlap,
}
"""What may tell forgetting: larger for more of it."""
IN_POINTS = ("forecast", "past_alone", "probe_alone")
"""Those of them that are changes of accuracy themselves, and so have an error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench and print its tables."""
    options = parsed(arguments)
    torch.set_num_threads(1)
    began = time.process_time()
    observations = [seen for cell in cells_of(options) for seen in observed(cell, resume=options.resume)]
    forecasts = forecast_all(observations)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table_of(forecasts))
    figures = figures_of(forecasts)
    console.print(
        f"intervals at {LEVEL:.0%}: {figures['all.covered']:.0%} of {figures['all.intervals']:.0f} hold what came, mean width "
        f"{figures['all.width']:.3f}; {time.process_time() - began:.0f} s of CPU"
    )
    if options.json:
        document = {"figures": figures, "observations": [asdict(seen) for seen in observations]}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.forecast", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--streams", type=names_among(STREAMS), default=[*DIGITS, *NEWS], metavar="A,B")
    parser.add_argument("--strategies", type=names_among(STRATEGIES), metavar="A,B")
    parser.add_argument("--seeds", type=int, help="how many (default 3; quick: 2, of newsgroups 1)")
    parser.add_argument("--first-seed", type=int, default=0, help="0; tune on others than those reported")
    parser.add_argument("--quick", action="store_true", help="about ten minutes of CPU")
    parser.add_argument("--resume", type=Path, help="keep finished cells in this file and take them from it")
    parser.add_argument("--json", type=Path, help="write figures and observations here")
    return parser.parse_args(arguments)


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """The lineages to learn. Digits are small as they are: with fewer steps a probe would be half of the update."""
    strategies = options.strategies or (QUICK_STRATEGIES if options.quick else ALL_STRATEGIES)
    for number in range(options.seeds or (2 if options.quick else 3)):
        for stream in options.streams:
            small = options.quick and stream not in DIGITS
            if not (small and number and options.seeds is None):
                yield from (Cell(stream, name, options.first_seed + number, small) for name in strategies)


def observed(cell: Cell, *, resume: Path | None) -> list[Observation]:
    """What a cell showed: taken from `resume` where it is there, else learnt now and added to it."""
    known = [seen for seen in kept(resume) if seen.cell == cell]
    if known:
        return known
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="palimpsest-forecast-") as folder:
        found = list(learnt(cell, Path(folder)))
    print(
        f"{cell.stream} {cell.strategy} seed {cell.seed}: {time.monotonic() - began:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    if resume is not None:
        with resume.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(asdict(seen)) + "\n" for seen in found)
    return found


def kept(resume: Path | None) -> Iterator[Observation]:
    """The observations of earlier runs."""
    if resume is not None and resume.exists():
        for line in resume.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            yield Observation(**{**found, "cell": Cell(**found["cell"]), "signs": Signs(**found["signs"])})


def learnt(cell: Cell, folder: Path) -> Iterator[Observation]:
    """Learn a stream task by task, a probe before every update but the first."""
    stream = STREAMS[cell.stream](cell.seed, quick=cell.quick)
    learner = Learner(
        stream, cell.strategy, dict(stream.parameters.get(cell.strategy, {})), cell.seed, folder
    )
    before: list[Outcomes] = []
    for number in range(1, len(stream.tasks) + 1):
        seen = probed(cell, learner, number, before) if before else []
        learner.update(number)
        before = [learner.answer(number, task) for task in range(number)]
        yield from (replace(one, change=score(before[one.task]) + one.change) for one in seen)


def probed(cell: Cell, learner: Learner, number: int, before: Sequence[Outcomes]) -> list[Observation]:
    """What a probe of update `number` shows of the tasks before it; the change is still minus the parent's score."""
    forget()
    output = str(learner.folder / f"probe-{number}")
    request = replace(
        learner.request(number), share=SHARE, output=output, checkpoints=f"{output}-checkpoints"
    )
    result = probe(request, on_progress=lambda _progress: None, should_stop=lambda: None)
    counts = label_counts(Path(request.fresh))
    seen = []
    for task, parent in enumerate(before):
        labels = frozenset(row["label"] for row in learner.rows[task])
        after = learner.answer_of(output, task)
        signs = signs_of(parent, after, new_loss=result.new_loss, overlap=overlap(counts, labels))
        seen.append(Observation(cell, number, task, result.steps, result.total_steps, signs, -score(parent)))
    return seen


def forecast_all(observations: Sequence[Observation]) -> list[Forecast]:
    """Every observation forecast from its signs and the updates of its lineage before it, as the service would have."""
    forecasts = []
    for seen in observations:
        past = [
            other.past for other in observations if other.cell == seen.cell and other.update < seen.update
        ]
        made = estimate(seen.signs, past, level=LEVEL)
        blind = estimate(
            unseeing(seen.signs), [replace(one, signs=unseeing(one.signs)) for one in past], level=LEVEL
        )
        forecasts.append(Forecast(seen, made.change, blind.change, made.interval))
    return forecasts


def unseeing(signs: Signs) -> Signs:
    """What is known without a look at the new data: the parent's score."""
    return Signs(0.0, 0.0, signs.parent_score, 0.0, 0.0)


def correlation(forecasts: Sequence[Forecast], predictor: str) -> float:
    """Spearman's ρ of a predictor with realised forgetting; NaN where either never varies."""
    told = [PREDICTORS[predictor](one) for one in forecasts]
    came = [-one.seen.change for one in forecasts]
    if len(set(told)) < 2 or len(set(came)) < 2:
        return math.nan
    return float(spearmanr(told, came).statistic)


def error(forecasts: Sequence[Forecast], predictor: str) -> float:
    """The mean absolute error of a predicted change."""
    return fmean(abs(PREDICTORS[predictor](one) + one.seen.change) for one in forecasts)


def groups_of(forecasts: Sequence[Forecast]) -> dict[str, list[Forecast]]:
    """The forecasts by stream, and all of them. Without any past nothing but the probe could tell: they are left out."""
    later = [one for one in forecasts if one.seen.update > 2]
    streams = dict.fromkeys(one.seen.cell.stream for one in later)
    return {
        **{name: [one for one in later if one.seen.cell.stream == name] for name in streams},
        "all": later,
    }


def within_lineages(forecasts: Iterable[Forecast], predictor: str) -> float:
    """The mean over lineages of ρ within each, those in which nothing varies left out."""
    lineages: dict[Cell, list[Forecast]] = {}
    for one in forecasts:
        lineages.setdefault(one.seen.cell, []).append(one)
    found = [correlation(ones, predictor) for ones in lineages.values()]
    varied = [value for value in found if not math.isnan(value)]
    return fmean(varied) if varied else math.nan


def figures_of(forecasts: Sequence[Forecast]) -> dict[str, float]:
    """`STREAM.PREDICTOR.rho`, `.rho_within` and `.error`, and `all.covered`, `.width` and `.intervals`; also for `all`."""
    figures: dict[str, float] = {}
    for name, ones in groups_of(forecasts).items():
        figures[f"{name}.forecasts"] = len(ones)
        figures[f"{name}.mean_forgetting"] = fmean(-one.seen.change for one in ones)
        for predictor in PREDICTORS:
            figures[f"{name}.{predictor}.rho"] = correlation(ones, predictor)
            figures[f"{name}.{predictor}.rho_within"] = within_lineages(ones, predictor)
        for predictor in IN_POINTS:
            figures[f"{name}.{predictor}.error"] = error(ones, predictor)
    known = [(one, one.interval) for one in forecasts if one.interval is not None]
    figures["all.intervals"] = len(known)
    figures["all.covered"] = (
        fmean(low <= one.seen.change <= high for one, (low, high) in known) if known else math.nan
    )
    figures["all.width"] = fmean(high - low for _, (low, high) in known) if known else math.nan
    return figures


def table_of(forecasts: Sequence[Forecast]) -> Table:
    """A stream per row: ρ of every predictor, and the mean error of those in points of accuracy."""
    title = f"Spearman's ρ with forgetting, from the third update on ({updates_needed(LEVEL)} past updates at most), and mean error"
    table = Table(title=title, title_justify="left")
    table.add_column("stream", no_wrap=True)
    for heading in ("tasks", *(f"ρ {name}" for name in PREDICTORS), *(f"error {name}" for name in IN_POINTS)):
        table.add_column(heading.replace("_", " "), justify="right")
    for name, ones in groups_of(forecasts).items():
        rho = (f"{correlation(ones, predictor):.2f}" for predictor in PREDICTORS)
        errors = (f"{error(ones, predictor):.3f}" for predictor in IN_POINTS)
        table.add_row(name, str(len(ones)), *rho, *errors)
    return table


if __name__ == "__main__":
    sys.exit(main())
