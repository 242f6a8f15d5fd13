"""Trials: short updates with one strategy after another, scored on rows held out of them.

A trial trains like any update, on fewer rows, and what is scored is the version it would yield.
"""

import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from workers.evaluation.kept import forget
from workers.evaluation.runner import evaluate
from workers.strategies.auto import Candidate
from workers.strategies.base import Strategy
from workers.strategies.catalogue import strategy_of
from workers.training.adapters import detach
from workers.training.batches import Mix
from workers.training.contract import EvaluateRequest, TrainRequest
from workers.training.loop import Loop, finished_version
from workers.training.preparation import prepare
from workers.training.versions import write_version
from workers.training.watching import OnProgress, ShouldStop, Watch

SHARE_HELD_OUT = 0.2
MOST_HELD_OUT = 512
"""Of the fresh rows, and of the buffered ones; it bounds what scoring a trial costs."""

RawRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Split:
    """An update's rows as they came, those that trials may train on apart from those they are scored on."""

    fresh: Sequence[RawRow]
    replay: Sequence[RawRow]
    held_fresh: Sequence[RawRow]
    held_replay: Sequence[RawRow]

    @classmethod
    def of(cls, request: TrainRequest) -> "Split":
        """Hold rows out by the request's seed. A row that is both fresh and buffered is on one side only."""
        fresh, replay = read_raw(request.fresh), read_raw(request.replay)
        held = [held_out(rows, seed=request.settings.seed) for rows in (fresh, replay)]
        ids = {row["id"] for rows in held for row in rows}
        kept = [[row for row in rows if row["id"] not in ids] for rows in (fresh, replay)]
        return cls(kept[0], kept[1], held[0], held[1])


def read_raw(path: str) -> list[RawRow]:
    """The rows of an NDJSON file that has been checked before, by ascending id; none for an empty path."""
    if not path:
        return []
    with Path(path).open(encoding="utf-8") as lines:
        return sorted((json.loads(line) for line in lines if line.strip()), key=lambda row: row["id"])


def write_raw(path: Path, rows: Sequence[RawRow]) -> str:
    """Write rows as NDJSON; returns the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def held_out(rows: Sequence[RawRow], *, seed: int) -> list[RawRow]:
    """A fifth of the rows, `MOST_HELD_OUT` at most: every k-th of a seeded shuffle sorted by task and label."""
    every = max(round(1 / SHARE_HELD_OUT), math.ceil(len(rows) / MOST_HELD_OUT))
    shuffled = [rows[i] for i in np.random.default_rng([seed, 5]).permutation(len(rows))]
    return sorted(shuffled, key=group_of)[every // 2 :: every]


def group_of(row: RawRow) -> tuple[str, str]:
    """What a sample of rows should be spread over."""
    return str(row.get("task", "")), str(row.get("label", ""))


@dataclass(frozen=True, slots=True)
class Plan:
    """How much a trial trains: its first `fresh_rows` fresh rows, in `epochs` and `steps`, `rows` in all."""

    fresh_rows: int
    epochs: int
    steps: int
    rows: int


def full_plan(request: TrainRequest, fresh: int, replay: int) -> Plan:
    """What the request costs in full, with so many fresh and buffered rows."""
    strategy, settings = strategy_of(request), request.settings
    if not strategy.trains:
        return Plan(fresh, 1, 0, fresh)
    mix = mix_of(request, strategy, fresh, replay)
    per_epoch = math.ceil(mix.batches / settings.gradient_accumulation)
    planned = settings.epochs * per_epoch
    steps = min(planned, settings.max_steps or planned)
    return Plan(fresh, settings.epochs, steps, round(steps * (fresh + mix.replay_rows) / per_epoch))


def plan_within(rows: float, request: TrainRequest, fresh: int, replay: int) -> Plan:
    """As large a share of the request as trains on `rows` rows at most; fewer fresh rows before fewer passes."""
    strategy, full = strategy_of(request), full_plan(request, fresh, replay)
    share = min(1.0, rows / full.rows)
    if not strategy.trains:
        taken = int(share * fresh)
        return Plan(taken, 1, 0, taken)
    mix = mix_of(request, strategy, fresh, replay)
    passes = full.rows / (fresh + mix.replay_rows)
    taken = max(1, math.ceil(min(1.0, share * passes) * fresh))
    sizes = step_sizes(mix_of(request, strategy, taken, replay), request, limit=rows, most=full.steps)
    epochs = max(1, math.ceil(share * passes * fresh / taken)) + 1
    return Plan(taken, epochs, len(sizes), sum(sizes))


def mix_of(request: TrainRequest, strategy: Strategy, fresh: int, replay: int) -> Mix:
    """The mix that the loop will make; how many rows each batch has does not depend on their lengths."""
    return Mix(
        fresh=np.zeros(fresh, dtype=np.int64),
        replay=np.zeros(replay, dtype=np.int64),
        batch_size=request.settings.batch_size,
        replay_fraction=strategy.replay_fraction,
        seed=request.settings.seed,
        draws=strategy.replay_draws,
    )


def step_sizes(mix: Mix, request: TrainRequest, *, limit: float, most: int) -> list[int]:
    """The rows of each step, from the first on, as long as their sum stays within `limit`."""
    accumulation, epoch = request.settings.gradient_accumulation, 0
    sizes: list[int] = []
    while len(sizes) < most:
        rows = [len(pick.fresh) + len(pick.replay) for pick in mix.epoch(epoch)]
        for first in range(0, len(rows), accumulation):
            step = sum(rows[first : first + accumulation])
            if sum(sizes) + step > limit or len(sizes) == most:
                return sizes
            sizes.append(step)
        epoch += 1
    return sizes


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one trial. `rows` went through optimiser steps; scores are `None` where nothing was held out.

    `failure` says why the strategy could not go on, if it could not.
    """

    rung: int
    strategy: str
    parameters: Mapping[str, Any]
    steps: int
    rows: int
    new: float | None = None
    old: float | None = None
    seconds: float = 0.0
    failure: str | None = None

    def objective(self, stability_weight: float) -> float:
        """(1 − w)·new + w·old; without old rows there is only the new."""
        if self.old is None:
            return self.new or 0.0
        return (1 - stability_weight) * (self.new or 0.0) + stability_weight * self.old

    def is_of(self, rung: int, candidate: Candidate) -> bool:
        """Whether this is the trial of `candidate` on `rung`."""
        return (self.rung, self.strategy, self.parameters) == (
            rung,
            candidate.strategy,
            candidate.parameters,
        )


def run_trial(
    request: TrainRequest,
    split: Split,
    plan: Plan,
    *,
    rung: int,
    folder: Path,
    on_progress: OnProgress,
    should_stop: ShouldStop,
) -> Trial:
    """Train the request as far as `plan` says, in `folder`, and score it on the rows held out.

    Raises:
        TrainingFailed: the strategy cannot take this update, or a number was none.
        Cancelled, Stopped: as asked through `should_stop`.
    """
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        short = trial_request(request, split, plan, folder)
        steps, rows = train_short(short, Watch(on_progress, should_stop))
        held = {row["id"]: row for row in (*split.held_fresh, *split.held_replay)}
        asked = EvaluateRequest(
            task_type=request.task_type, base=request.base, version=short.output,
            rows=write_raw(folder / "held-out.ndjson", list(held.values())),
            batch_size=request.settings.evaluation_batch_size,
        )  # fmt: skip
        outcomes = evaluate(asked, on_progress=on_progress, should_stop=should_stop)
    finally:
        forget()
        shutil.rmtree(folder, ignore_errors=True)
    correct = dict(zip(outcomes.example_ids, outcomes.correct, strict=True))
    return Trial(
        rung, request.strategy, request.parameters, steps, rows,
        new=mean_accuracy(split.held_fresh, correct), old=mean_accuracy(split.held_replay, correct),
        seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip


def trial_request(request: TrainRequest, split: Split, plan: Plan, folder: Path) -> TrainRequest:
    """The request cut down to a plan, on rows drawn by its seed from those not held out."""
    order = np.random.default_rng([request.settings.seed, 6]).permutation(len(split.fresh))
    return replace(
        request,
        fresh=write_raw(folder / "fresh.ndjson", [split.fresh[i] for i in order[: plan.fresh_rows]]),
        replay=write_raw(folder / "replay.ndjson", split.replay),
        output=str(folder / "version"),
        checkpoints=str(folder / "checkpoints"),
        checkpoint_seconds=math.inf,
        settings=replace(request.settings, epochs=plan.epochs, max_steps=plan.steps or None),
    )


def train_short(request: TrainRequest, watch: Watch) -> tuple[int, int]:
    """Train a version without state for the next update; returns the steps and the rows that took."""
    strategy = strategy_of(request)
    run, sha256 = prepare(request, strategy, watch)
    loop = Loop.begin(run, strategy)
    loop.resume()
    picks = [pick for step in loop.remaining_steps() for pick in step]
    loop.train()
    adapter, error = strategy.combine(run, detach(run.model.encoder))
    write_version(Path(request.output), finished_version(run, strategy, sha256, adapter, error))
    rows = sum(len(pick.fresh) + len(pick.replay) for pick in picks) if strategy.trains else len(run.fresh)
    return loop.step, rows


def mean_accuracy(rows: Sequence[RawRow], correct: Mapping[int, bool]) -> float | None:
    """The accuracy on each task of `rows`, averaged over tasks; `None` for no rows."""
    by_task = defaultdict(list)
    for row in rows:
        by_task[row.get("task", "")].append(correct[row["id"]])
    return fmean(fmean(answers) for answers in by_task.values()) if by_task else None
