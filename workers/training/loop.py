"""The training loop: one update, from a request to a version folder."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.strategies.auto import Auto
from workers.strategies.base import Strategy
from workers.strategies.blend import Blend
from workers.strategies.catalogue import strategy_of
from workers.training.acceleration import accelerated
from workers.training.adapters import Adapter, detach
from workers.training.batches import Mix, Pick
from workers.training.blending import blend
from workers.training.checkpoints import (
    Checkpoint,
    capture,
    fingerprint,
    read_checkpoint,
    restore,
    write_checkpoint,
)
from workers.training.contract import TrainingSettings, TrainRequest, TrainResult
from workers.training.curve import LossCurve
from workers.training.devices import device_name, peak_memory_bytes
from workers.training.errors import Stopped
from workers.training.importing import IMPORT, import_adapter
from workers.training.preparation import prepare
from workers.training.run import Run
from workers.training.teams import Team, led
from workers.training.versions import Version, facts_of, packages, write_version
from workers.training.watching import OnProgress, ShouldStop, Watch

SETTLE_STEPS_ON_GPU = 16
LEAST_STEPS = 8
"""A share of an update that is fewer steps tells nothing of the rest."""


def train(request: TrainRequest, *, on_progress: OnProgress, should_stop: ShouldStop) -> TrainResult:
    """Train one update and write its version folder to `request.output`.

    A checkpoint of the same request found in `request.checkpoints` is taken up where it ends.

    Args:
        on_progress: called at least once per step and per chunk of rows; should return at once.
        should_stop: polled as often; `cancel` ends the run, `stop` writes a checkpoint first.

    Raises:
        TrainingFailed: the run cannot go on; `code` says why.
        Cancelled, Stopped: as asked through `should_stop`.
    """
    if request.strategy == Auto.name:
        from workers.training.search import train_best  # its trials are trained by this very module

        return train_best(request, on_progress=on_progress, should_stop=should_stop)
    if request.strategy == Blend.name:
        return blend(request, on_progress=on_progress, should_stop=should_stop)
    if request.strategy == IMPORT:
        return import_adapter(request, on_progress=on_progress, should_stop=should_stop)
    return train_one(request, on_progress=on_progress, should_stop=should_stop)


def train_one(
    request: TrainRequest,
    *,
    on_progress: OnProgress,
    should_stop: ShouldStop,
    auto: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train with the strategy that the request names; `auto` is the record of how it was found, if it was."""
    began = time.monotonic()
    watch = Watch(on_progress, should_stop)
    strategy = strategy_of(request)
    with led(request, watch) as team:
        run, sha256 = prepare(request, strategy, watch)
        loop = Loop.begin(run, strategy, team)
        loop.resume()  # stopped in here there is nothing new to save, and an older checkpoint to keep
        loop.train()
    watch.at("consolidating")
    adapter, error = strategy.combine(run, detach(run.model.encoder))
    state = strategy.finish(run)
    watch.at("saving", loop.total_steps, loop.total_steps, loop.curve.recent)
    version = finished_version(run, strategy, sha256, adapter, error)
    if state:
        version.states[strategy.name] = state  # type: ignore[index]  # made with a plain dict
    if auto is not None:
        version = replace(version, facts={**version.facts, "auto": auto})
    write_version(Path(request.output), version)
    return replace(loop.result(time.monotonic() - began), auto=auto)


def follow(request: TrainRequest, team: Team) -> None:
    """Take part in the training of an update that another process leads."""
    watch = Watch(lambda _progress: None, lambda: None)
    strategy = strategy_of(request)
    run, _ = prepare(request, strategy, watch)
    loop = Loop.begin(run, strategy, team)
    loop.resume()
    loop.train()


def finished_version(run: Run, strategy: Strategy, sha256: str, adapter: Adapter, error: float) -> Version:
    """The version just trained: always one adapter, whatever it was trained as."""
    facts = facts_of(
        run.request,
        sha256=sha256,
        extra={
            "parameters": strategy.params.model_dump(mode="json"),
            "rank": adapter.rank,
            "compression": {"relative_error": error},
            "strategy_record": dict(strategy.record()),
            "rows": {"fresh": len(run.fresh), "replay": len(run.replay)},
            "device": device_name(run.device),
        },
    )
    return Version(adapter, run.model.head, run.request.labels, facts, {})


@dataclass(slots=True)
class Loop:
    """A run between two steps."""

    run: Run
    strategy: Strategy
    team: Team
    optimiser: torch.optim.Optimizer
    mix: Mix
    curve: LossCurve
    fingerprint: str
    total_steps: int
    last_step: int
    steps_per_epoch: int
    step: int = 0
    saved_step: int = 0
    checkpoint_at: float = 0.0
    warnings: tuple[str, ...] = ()

    @classmethod
    def begin(cls, run: Run, strategy: Strategy, team: Team | None = None) -> "Loop":
        """Set up a run at its first step."""
        settings = run.request.settings
        mix = Mix(
            fresh=run.fresh.lengths,
            replay=run.replay.lengths,
            batch_size=settings.batch_size,
            replay_fraction=strategy.replay_fraction,
            seed=settings.seed,
            draws=strategy.replay_draws,
        )
        steps_per_epoch = -(-mix.batches // settings.gradient_accumulation)
        planned = settings.epochs * steps_per_epoch if strategy.trains else 0
        total_steps = min(planned, settings.max_steps or planned)
        optimiser = make_optimiser(run)
        strategy.follow(optimiser)
        return cls(
            run=run,
            strategy=strategy,
            team=team or Team(),
            optimiser=optimiser,
            mix=mix,
            curve=LossCurve(),
            fingerprint=fingerprint(run.request),
            total_steps=total_steps,
            last_step=steps_of(run.request.share, total_steps),
            steps_per_epoch=steps_per_epoch,
        )

    def resume(self) -> None:
        """Let the strategy prepare, then go on from the newest checkpoint of this request, if there is one."""
        self.strategy.start(self.run)
        checkpoint = read_checkpoint(Path(self.run.request.checkpoints), fingerprint=self.fingerprint)
        if checkpoint is not None:
            self.strategy.resume(restore(checkpoint, self.run.model, self.optimiser))
            self.step = self.saved_step = self.run.watch.checkpoint_step = checkpoint.step
            self.curve = LossCurve(checkpoint.losses)

    def train(self) -> None:
        """Take the remaining steps; leaves a checkpoint when told to stop, and one of the last step.

        Whatever comes after the last step may change the model, so that a stop later on must come back to here.
        """
        model, settings = self.run.model, self.run.request.settings
        model.train()
        self.checkpoint_at = time.monotonic() + self.run.request.checkpoint_seconds
        try:
            with accelerated(model, settings, self.try_out) as self.warnings:
                self.take_steps()
        except Stopped:
            self.save_checkpoint()
            raise
        self.save_checkpoint()
        self.run.watch.at("training", self.step, self.last_step, self.curve.recent)

    def take_steps(self) -> None:
        """Take the remaining steps, with a checkpoint now and then."""
        for picks in self.remaining_steps():
            self.run.watch.at("training", self.step, self.last_step, self.curve.recent)
            self.take_step(picks)
            self.step += 1
            if time.monotonic() >= self.checkpoint_at:
                self.save_checkpoint()

    def try_out(self) -> None:
        """Go forward and backward through the first batch, for nothing."""
        for picks in islice(self.remaining_steps(), 1):
            batch = self.run.batch(picks[0])
            with self.run.autocast():
                loss = self.run.model(batch).sum()
            loss.backward()

    def remaining_steps(self) -> Iterator[list[Pick]]:
        """The picks of each step not yet taken; one step has `gradient_accumulation` of them, or what is left."""
        size = self.run.request.settings.gradient_accumulation
        first = self.step
        for epoch in range(first // self.steps_per_epoch, -(-self.last_step // self.steps_per_epoch)):
            picks = self.mix.epoch(epoch)
            for index in range(self.steps_per_epoch):
                if first <= epoch * self.steps_per_epoch + index < self.last_step:
                    yield picks[index * size : (index + 1) * size]

    def take_step(self, picks: list[Pick]) -> None:
        """Forward, backward, clip, step."""
        settings, model = self.run.request.settings, self.run.model
        set_rates(self.optimiser, rate_factor(self.step, self.total_steps, settings))
        self.optimiser.zero_grad(set_to_none=True)
        self.team.seed(settings.seed, self.step)
        parts = [self.backward(pick, passes=len(picks)) for pick in picks]
        losses = self.team.add_up(model.trainable().values(), parts)
        self.strategy.adjust_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_(model.trainable().values(), settings.max_grad_norm)
        self.curve.add(losses, norm, [self.run.example_ids(pick) for pick in picks])
        if self.run.device.type == "cpu" or self.step % SETTLE_STEPS_ON_GPU == 0:
            self.curve.settle()
        self.optimiser.step()
        self.strategy.adjust_step(model)

    def backward(self, pick: Pick, *, passes: int) -> Tensor:
        """Add this rank's part of one of a step's `passes` to the gradients; returns its part of the step's loss."""
        mine = self.team.part(pick)
        share = self.run.predictions(mine) / self.run.predictions(pick)
        if share == 0:
            return torch.zeros((), device=self.run.device)
        batch = self.run.batch(mine)
        with self.run.autocast():
            loss = self.strategy.loss(self.run.model, batch) / passes * share
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss.detach()

    def save_checkpoint(self) -> None:
        """Write where the run stands; a bad number met since the last look is raised instead of saved."""
        self.curve.settle()
        if self.team.rank != 0 or self.step == self.saved_step:
            return
        tensors = capture(self.run.model, self.optimiser, self.strategy.checkpoint())
        checkpoint = Checkpoint(self.step, tuple(self.curve.losses), tensors)
        write_checkpoint(Path(self.run.request.checkpoints), checkpoint, fingerprint=self.fingerprint)
        self.saved_step = self.run.watch.checkpoint_step = self.step
        self.checkpoint_at = time.monotonic() + self.run.request.checkpoint_seconds

    def result(self, seconds: float) -> TrainResult:
        """Sum the run up."""
        return TrainResult(
            steps=self.step,
            epochs=self.step / self.steps_per_epoch,
            fresh_rows=len(self.run.fresh),
            replay_rows=len(self.run.replay),
            final_loss=self.curve.recent,
            train_seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(self.run.device),
            labels=self.run.request.labels,
            losses=self.curve.thinned(),
            packages=packages(),
            device=device_name(self.run.device),
            warnings=self.warnings,
        )


def make_optimiser(run: Run) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for the head, where there is one; weight decay on matrices, not on biases."""
    settings = run.request.settings
    groups: list[dict[str, Any]] = [
        {"params": run.model.adapter_parameters(), "base_rate": settings.learning_rate}
    ]
    for parameter in run.model.head_parameters().values():
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.append(
            {"params": [parameter], "base_rate": settings.head_learning_rate, "weight_decay": decay}
        )
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def steps_of(share: float, total_steps: int) -> int:
    """How many steps a share of an update is: `LEAST_STEPS` or more, as far as there are so many."""
    return min(total_steps, max(LEAST_STEPS, math.ceil(share * total_steps)))


def rate_factor(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """The share of the full learning rate at `step` (from 0): a linear rise, then a linear fall to zero."""
    warmup = settings.warmup_ratio * total_steps
    if step + 1 < warmup:
        return (step + 1) / warmup
    return min(1.0, (total_steps - step) / max(1.0, total_steps - warmup))


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its base rate times `factor`."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_rate"] * factor
