"""What `auto` stands for: successive halving over strategies, then an update with the winner.

Finished trials are kept beside the checkpoints, so that a stopped search goes on with the next one.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from workers.strategies.auto import PORTFOLIO, Auto, Candidate, Params
from workers.strategies.catalogue import check_takes, strategy_of
from workers.training.checkpoints import fingerprint
from workers.training.contract import Progress, TrainRequest, TrainResult
from workers.training.errors import DIVERGED, TrainingFailed
from workers.training.folders import write_json
from workers.training.loop import train_one
from workers.training.preparation import checked_rows
from workers.training.trials import Plan, Split, Trial, full_plan, plan_within, run_trial
from workers.training.watching import OnProgress, ShouldStop, Watch

UNFIT = frozenset(
    {
        "unknown_strategy",
        "strategy_unsupported",
        "bad_parameters",
        "strategy_state_missing",
        "adapters_differ",
    }
)
"""Why a strategy cannot take an update that others may."""

FEWEST_STEPS = 4
"""A trial of fewer steps says nothing."""

TRIALS_FILE = "trials.json"


def train_best(request: TrainRequest, *, on_progress: OnProgress, should_stop: ShouldStop) -> TrainResult:
    """Search the portfolio for the strategy that suits this update, and train with it on all rows.

    Raises:
        TrainingFailed: as `train` does, and `no_strategy_fits`.
        Cancelled, Stopped: as asked; a stopped search or training is taken up where it ended.
    """
    began = time.monotonic()
    params = Auto(request.parameters).params
    check_takes(Auto, request)
    checked_rows(request)
    choice = choose(request, params, on_progress, should_stop)
    for candidate in choice.order:
        record = {**choice.record, "winner": named(candidate)}
        try:
            result = train_one(
                as_candidate(request, candidate),
                on_progress=on_progress,
                should_stop=should_stop,
                auto=record,
            )
        except TrainingFailed as error:
            if error.code not in UNFIT:
                raise
            choice.record["skipped"].append({**named(candidate), "reason": str(error)})
        else:
            return replace(result, train_seconds=time.monotonic() - began)
    raise TrainingFailed(
        "no_strategy_fits",
        "no strategy of the portfolio of 'auto' can take this update; name one and see why",
        {"skipped": choice.record["skipped"], "rungs": choice.record["rungs"]},
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What to train with, in order of preference, and the record of how that was found."""

    order: Sequence[Candidate]
    record: dict[str, Any]


def choose(request: TrainRequest, params: Params, on_progress: OnProgress, should_stop: ShouldStop) -> Choice:
    """Search where there is something to weigh, else say why not and take the safest."""
    split = Split.of(request)
    skipped: list[dict[str, Any]] = []
    record = {
        "searched": False,
        **params.model_dump(),
        "held_out": {"new": len(split.held_fresh), "old": len(split.held_replay)},
        "skipped": skipped,
        "rungs": [],
    }
    if request.parent is None:
        record["reason"] = "no parent: nothing can be forgotten, so there is nothing to weigh"
        return Choice([Candidate("sequential")], record)
    fit = fitting(request, bool(split.replay), skipped)
    if not split.fresh or not split.held_fresh or not (split.held_replay or params.stability_weight == 0):
        record["reason"] = (
            "too few fresh or buffered rows to hold any out, so that trials could not be compared"
        )
        return Choice(fit, record)
    search = Search(request, params, split, Watch(on_progress, should_stop), fit)
    search.run()
    skipped.extend(
        {**named(candidate), "reason": "the budget was too small to try it"} for candidate in search.left_out
    )
    return Choice(search.standing, {**record, **search.told()})


def fitting(request: TrainRequest, buffered: bool, skipped: list[dict[str, Any]]) -> list[Candidate]:
    """The candidates of the portfolio that can take this update as far as can be told without trying."""
    fit = []
    for candidate in PORTFOLIO:
        try:
            strategy_of(as_candidate(request, candidate))
        except TrainingFailed as error:
            skipped.append({**named(candidate), "reason": str(error)})
            continue
        if candidate.rehearses and not buffered:
            skipped.append({**named(candidate), "reason": "there are no buffered rows to rehearse"})
        else:
            fit.append(candidate)
    return fit


@dataclass(slots=True)
class Search:
    """Successive halving in progress. `standing` are the candidates not yet beaten, best first."""

    request: TrainRequest
    params: Params
    split: Split
    watch: Watch
    standing: list[Candidate]
    trials: list[Trial] = field(default_factory=list)
    left_out: list[Candidate] = field(default_factory=list)
    here: int = 0
    """Steps taken by the trial in progress."""

    @property
    def plain(self) -> Plan:
        """One plain update: the unit of the budget."""
        plain = replace(self.request, strategy="sequential", parameters={})
        return full_plan(plain, len(self.split.fresh) + len(self.split.held_fresh), 0)

    @property
    def budget_rows(self) -> float:
        """Rows that all trials together may train on."""
        return self.params.budget * self.plain.rows

    def run(self) -> None:
        """Halve the candidates until one is left, or all that are have been trained in full."""
        self.leave_out()
        notes = Notes.of(self.request)
        rungs = rungs_for(len(self.standing))
        for rung in range(rungs):
            plans = self.plans(self.standing, self.budget_rows / rungs)
            for candidate, plan in zip(self.standing, plans, strict=True):
                self.trials.append(notes.trial(rung, candidate) or self.tried(candidate, plan, rung))
                notes.write(self.trials)
            last = rung == rungs - 1 or self.budget_rows / rungs >= self.full_rows(self.standing)
            self.standing = self.better_half(rung, last=last)
            if len(self.standing) < 2:
                return

    def leave_out(self) -> None:
        """Keep as many of the first candidates as the first rung can give `FEWEST_STEPS` each."""
        count = len(self.standing)
        while count > 1:
            plans = self.plans(self.standing[:count], self.budget_rows / rungs_for(count))
            if all((plan.steps or plan.rows) >= FEWEST_STEPS for plan in plans):
                break
            count -= 1
        self.standing, self.left_out = self.standing[:count], self.standing[count:]

    def plans(self, candidates: Sequence[Candidate], rows: float) -> list[Plan]:
        """Spread `rows` so that every candidate trains the same share of its own full update."""
        sizes = len(self.split.fresh), len(self.split.replay)
        requests = [as_candidate(self.request, candidate) for candidate in candidates]
        share = min(1.0, rows / self.full_rows(candidates))
        return [plan_within(share * full_plan(request, *sizes).rows, request, *sizes) for request in requests]

    def full_rows(self, candidates: Sequence[Candidate]) -> int:
        """Rows that the candidates would train on if each were trained in full."""
        sizes = len(self.split.fresh), len(self.split.replay)
        return sum(full_plan(as_candidate(self.request, candidate), *sizes).rows for candidate in candidates)

    def tried(self, candidate: Candidate, plan: Plan, rung: int) -> Trial:
        """Run a trial; a strategy that cannot take this update, or diverges, has a trial that says so."""
        self.here = 0
        try:
            return run_trial(
                as_candidate(self.request, candidate),
                self.split,
                plan,
                rung=rung,
                folder=Path(self.request.checkpoints) / "trial",
                on_progress=self.report,
                should_stop=lambda: None,  # `report` obeys
            )
        except TrainingFailed as error:
            if error.code not in UNFIT | DIVERGED:
                raise
            return Trial(rung, candidate.strategy, candidate.parameters, 0, 0, failure=str(error))

    def report(self, progress: Progress) -> None:
        """Tell where a trial stands as a position in the whole search, in steps; a plain update's set the scale."""
        total = max(1, int(self.params.budget * self.plain.steps))
        if progress.phase == "training":
            self.here = progress.step
        done = sum(trial.steps for trial in self.trials) + self.here
        self.watch.at("searching", min(done, total), total, progress.loss)

    def better_half(self, rung: int, *, last: bool) -> list[Candidate]:
        """The better half of those tried on a rung, rounded up, best first; only the best of the last rung."""
        tried = [trial for trial in self.trials if trial.rung == rung and trial.failure is None]
        # The sort is stable: between equals the one that stood better so far goes on, at first by the portfolio.
        ranked = sorted(tried, key=lambda trial: (-self.objective(trial), -(trial.old or 0.0)))
        keep = 1 if last else math.ceil(len(ranked) / 2)
        return [Candidate(trial.strategy, trial.parameters) for trial in ranked[:keep]]

    def objective(self, trial: Trial) -> float:
        """What candidates are compared by."""
        return trial.objective(self.params.stability_weight)

    def told(self) -> dict[str, Any]:
        """The record of the search: every rung's trials, what was left out, and why the winner won, in words."""
        rungs = sorted({trial.rung for trial in self.trials})
        return {
            "searched": True,
            "plain_rows": self.plain.rows,
            "budget_rows": int(self.budget_rows),
            "spent_rows": sum(trial.rows for trial in self.trials),
            "rungs": [[self.entry(trial) for trial in self.trials if trial.rung == rung] for rung in rungs],
            "reason": self.reason(),
        }

    def entry(self, trial: Trial) -> dict[str, Any]:
        """One trial of the record."""
        scored = {"objective": None if trial.failure else self.objective(trial)}
        return {name: value for name, value in asdict(trial).items() if name != "rung"} | scored

    def reason(self) -> str:
        """Why the winner won."""
        if not self.standing:
            return "every candidate failed"
        if not self.trials:
            return "the budget allows no two trials, so the first candidate that fits was taken"
        final = max(trial.rung for trial in self.trials)
        tried = [trial for trial in self.trials if trial.rung == final and trial.failure is None]
        ranked = sorted(tried, key=lambda trial: not trial.is_of(final, self.standing[0]))
        winner = ranked[0]
        words = f"{worded(winner)} reached {self.objective(winner):.3f} (new {winner.new}, old {winner.old}) in the last rung"
        if len(ranked) > 1:
            runner_up = max(ranked[1:], key=self.objective)
            words += f", the next best, {worded(runner_up)}, {self.objective(runner_up):.3f}"
        return f"{words}; standard error about {self.standard_error(winner):.3f}"

    def standard_error(self, trial: Trial) -> float:
        """The binomial standard error of a trial's objective."""
        weight = self.params.stability_weight if trial.old is not None else 0.0
        parts = (
            (1 - weight, trial.new, len(self.split.held_fresh)),
            (weight, trial.old, len(self.split.held_replay)),
        )
        variances = [w**2 * p * (1 - p) / n for w, p, n in parts if p is not None and n > 0]
        return math.sqrt(sum(variances))


def rungs_for(candidates: int) -> int:
    """How often so many candidates can be halved until one is left."""
    return math.ceil(math.log2(candidates)) if candidates > 1 else 0


@dataclass(frozen=True, slots=True)
class Notes:
    """The trials that an earlier attempt at the same search finished, kept beside the checkpoints."""

    path: Path
    fingerprint: str
    trials: Sequence[Trial]

    @classmethod
    def of(cls, request: TrainRequest) -> "Notes":
        """Read the notes of this very request; there are none when another request left them, or none did."""
        path, key = Path(request.checkpoints) / TRIALS_FILE, fingerprint(request)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            trials = [Trial(**entry) for entry in found["trials"]] if found["fingerprint"] == key else []
        except (OSError, ValueError, TypeError, KeyError):
            trials = []
        return cls(path, key, trials)

    def trial(self, rung: int, candidate: Candidate) -> Trial | None:
        """What came of a candidate on a rung, if that is known."""
        return next((trial for trial in self.trials if trial.is_of(rung, candidate)), None)

    def write(self, trials: Sequence[Trial]) -> None:
        """Write the finished trials down, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        write_json(temporary, {"fingerprint": self.fingerprint, "trials": [asdict(t) for t in trials]})
        temporary.replace(self.path)


def as_candidate(request: TrainRequest, candidate: Candidate) -> TrainRequest:
    """The request, to be trained with a candidate."""
    return replace(request, strategy=candidate.strategy, parameters=dict(candidate.parameters))


def named(candidate: Candidate) -> dict[str, Any]:
    """A candidate in the record."""
    return {"strategy": candidate.strategy, "parameters": dict(candidate.parameters)}


def worded(trial: Trial) -> str:
    """A trial's candidate in a sentence."""
    knobs = ", ".join(f"{name} {value}" for name, value in trial.parameters.items())
    return f"'{trial.strategy}' ({knobs})" if knobs else f"'{trial.strategy}'"
