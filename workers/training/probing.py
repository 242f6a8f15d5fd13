"""Probes: the first steps of an update, as its whole would take them, and the version they would yield."""

import time
from pathlib import Path

import torch
from torch.nn import functional

from workers.strategies.catalogue import strategy_of
from workers.training.adapters import detach
from workers.training.contract import ProbeResult, TrainingSettings, TrainRequest
from workers.training.loop import Loop, finished_version, rate_factor
from workers.training.preparation import prepare
from workers.training.run import Run
from workers.training.teams import led
from workers.training.versions import write_version
from workers.training.watching import OnProgress, ShouldStop, Watch

NEW_ROWS = 256
"""Fresh rows that the parent's loss is measured on: enough for two digits."""


def probe(request: TrainRequest, *, on_progress: OnProgress, should_stop: ShouldStop) -> ProbeResult:
    """Take the first `request.share` of an update's steps and write the version they yield to `request.output`.

    Warm-up, rates and order of rows are those of the whole update. The version carries no state for a next one.

    Raises:
        TrainingFailed, Cancelled, Stopped: as `train` does.
    """
    began = time.monotonic()
    watch = Watch(on_progress, should_stop)
    strategy = strategy_of(request)
    with led(request, watch) as team:
        run, sha256 = prepare(request, strategy, watch)
        new_loss = loss_on_new_rows(run)
        loop = Loop.begin(run, strategy, team)
        loop.resume()
        ready = time.monotonic()
        loop.train()
        trained = time.monotonic()
    adapter, error = strategy.combine(run, detach(run.model.encoder))
    write_version(Path(request.output), finished_version(run, strategy, sha256, adapter, error))
    return ProbeResult(
        steps=loop.step,
        total_steps=loop.total_steps,
        rate_share=rate_share(loop.step, loop.total_steps, run.request.settings),
        new_loss=new_loss,
        fresh_rows=len(run.fresh),
        replay_rows=len(run.replay),
        prepare_seconds=ready - began,
        train_seconds=trained - ready,
    )


@torch.inference_mode()
def loss_on_new_rows(run: Run) -> float:
    """The mean loss of the model as it stands, in nats per prediction, on at most `NEW_ROWS` of the fresh rows."""
    settings = run.request.settings
    sample = run.fresh.sample(NEW_ROWS, seed=settings.seed)
    total, count = 0.0, 0
    run.model.eval()
    for batch in run.batches_of(sample, batch_size=settings.batch_size, phase="preparing"):
        with run.autocast():
            logits = run.model(batch)
        total += float(functional.cross_entropy(logits.float(), batch.labels, reduction="sum"))
        count += len(batch.labels)
    return total / max(1, count)


def rate_share(steps: int, total_steps: int, settings: TrainingSettings) -> float:
    """The share of all steps' learning rates, summed, that the first `steps` have."""
    rates = [rate_factor(step, total_steps, settings) for step in range(total_steps)]
    return sum(rates[:steps]) / sum(rates) if rates else 1.0
