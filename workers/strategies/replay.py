"""Experience replay: every batch mixes fresh rows with rows of the replay buffer.

Loss, with r the share of replayed rows in the mix and π_y the share of label y in it:

    L = −(1/n) Σ log softmax(z(x) + τ·log π)_y

over the collated batch. τ = 0 is plain cross-entropy. τ = 1 trains the model for a world in which all labels
are equally common: four new labels that fill half of the mix and sixteen old ones that share the other half
would otherwise shift the head towards the new. Inference uses z alone. A language model has no label shares to
correct: there the loss is plain cross-entropy over the answer tokens, whatever τ.

Source: experience replay as in Chaudhry et al. 2019 (arXiv 1902.10486); the shift is the balanced softmax of
Ren et al. 2020 (arXiv 2007.10740, eq. 3; Menon et al. 2020, arXiv 2007.07314, eq. 10).
Defaults: r = 0.5 and τ = 1, measured on a class-incremental stream of newsgroups (see the tests).
Wins: nearly everywhere a buffer may be kept; a few dozen rows per label do.
Costs: 1 / (1 − r) forwards and backwards per fresh row, whatever the length of the history.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from workers.strategies import base
from workers.training.batches import Batch
from workers.training.model import AdaptedModel
from workers.training.run import Run


class Params(base.Params):
    """Parameters of `replay`."""

    fraction: float = Field(
        default=0.5, ge=0.0, le=0.95, description="share of replayed rows in the training mix"
    )
    balance: float = Field(
        default=1.0,
        ge=0.0,
        le=2.0,
        description="strength τ of the correction for unequal label shares; 0 is plain",
    )


class Replay(base.Strategy):
    """Rehearse buffered rows beside fresh ones, corrected for the shares of the labels."""

    name = "replay"
    summary = "Mix buffered examples of earlier tasks into training: the default"
    adapter_types = ("lora", "dora", "oft")
    task_types = base.ALL_TASK_TYPES
    many_devices = True
    needs_replay = True
    params_type = Params
    params: Params

    @property
    def replay_fraction(self) -> float:
        """Share of buffered rows in the training mix."""
        return self.params.fraction

    def start(self, run: Run) -> None:
        """Work out the labels' shares of the mix."""
        if run.request.task_type == "causal-lm":
            self.offsets = torch.zeros((), device=run.device)
        else:
            self.offsets = self.params.balance * label_shares(run, self.params.fraction).log()

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy of the shifted logits over the batch."""
        return functional.cross_entropy(model(batch) + self.offsets, batch.labels)


def label_shares(run: Run, replay_fraction: float) -> Tensor:
    """The expected share [labels] of each label in the mix, at least that of a single fresh row."""
    fresh = torch.from_numpy(run.fresh.label_counts(run.labels))
    shares = fresh / fresh.sum()
    if len(run.replay) > 0:
        replay = torch.from_numpy(run.replay.label_counts(run.labels))
        shares = (1 - replay_fraction) * shares + replay_fraction * replay / replay.sum()
    floor = 1.0 / len(run.fresh)
    return shares.clamp(min=min(floor, float(shares.max()))).float().to(run.device)


def mix_offsets(run: Run, replay_fraction: float) -> Tensor:
    """The shift log π of the logits by the labels' shares of the mix; nought [1] without replay or labels."""
    if replay_fraction == 0 or len(run.replay) == 0 or run.request.task_type == "causal-lm":
        return torch.zeros(1, device=run.device)
    return label_shares(run, replay_fraction).log()
