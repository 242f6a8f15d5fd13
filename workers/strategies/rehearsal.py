"""What strategies share that mix buffered rows into training: how much of the mix they are, and which labels it favours."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from workers.strategies import base
from workers.training.run import Run


def share(default: float) -> Any:
    """The field of a share of buffered rows; a whole mix of them would have no room for what is to be learnt."""
    return Field(
        default=default,
        ge=0.0,
        le=0.95,
        description="share of buffered rows, over all draws, in the training mix",
    )


class Params(base.Params):
    """Parameters of strategies that rehearse."""

    fraction: float = share(0.5)


class BalancedParams(Params):
    """Parameters of those that correct for unequal shares of the labels."""

    balance: float = Field(
        default=1.0,
        ge=0.0,
        le=2.0,
        description="strength τ of the correction for unequal label shares; 0 is plain",
    )


class Rehearsing(base.Strategy):
    """A strategy whose batches hold `fraction` of buffered rows."""

    needs_replay = True
    params: Params

    @property
    def replay_fraction(self) -> float:
        """Share of buffered rows in the training mix."""
        return self.params.fraction


def label_shares(run: Run, fraction: float) -> Tensor:
    """The expected share [labels] of each label in the mix, at least that of a single fresh row."""
    fresh = torch.from_numpy(run.fresh.label_counts(run.labels))
    shares = fresh / fresh.sum()
    if len(run.replay) > 0:
        replay = torch.from_numpy(run.replay.label_counts(run.labels))
        shares = (1 - fraction) * shares + fraction * replay / replay.sum()
    floor = 1.0 / len(run.fresh)
    return shares.clamp(min=min(floor, float(shares.max()))).float().to(run.device)


def offsets_of(run: Run, fraction: float) -> Tensor:
    """The shift log π of the logits by the labels' shares π of the mix; nought where there are no labels."""
    if run.request.task_type == "causal-lm":
        return torch.zeros((), device=run.device)
    return label_shares(run, fraction).log()


def offsets_if_mixed(run: Run, fraction: float) -> Tensor:
    """The same for strategies whose way is to train without replay: nought where nothing is replayed."""
    if fraction == 0 or len(run.replay) == 0:
        return torch.zeros((), device=run.device)
    return offsets_of(run, fraction)
