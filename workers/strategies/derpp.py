"""DER++: rehearse buffered rows with their labels and with the logits that an earlier version gave them.

With two independent draws from the buffer,

    L = CE(fresh) + α · mean (z − z_stored)² [draw 1] + β · CE [draw 2],

each term averaged over its own rows, the squares over a row's stored logits as well. Both cross-entropies take
logits shifted by τ·log of the labels' shares (see `replay`), the mix here being 1 : β; the squares compare plain logits.

A row's stored logits are those of the version that learnt it, and they know that version's labels only: labels added
since are left out of its squares (they are the cross-entropy's business). The version that learnt a row is at
the next update the parent itself, so its logits are computed in `start`, and an update hands on those of its buffer
alone. The same computation serves rows whose logits nobody stored: a parent trained by another strategy, state
dropped by an erasure, a row that stepped into the buffer later; they are the parent's then.

Source: Buzzega et al. 2020 (arXiv 2004.07211, eq. 6); squares averaged over labels as in the authors' code.
Defaults: two thirds of the mix is buffered, so that each draw is as large as the fresh part, as in the paper.
α = 0.3 and β = 0.5: the paper tunes both per data set and buffer (α from 0.1 to 1, β 0.5 or 1); these did best of
those tried on split digits (α of 0.1 to 1 made little difference there).
Wins: class-incremental streams with a small buffer, where a row's logits say more than its label.
Costs: 1 / (1 − fraction) forwards and backwards per fresh row, one forward over new buffer rows per update. State: a float32
per buffered row and label; a buffer of c rows bounds it.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from workers.strategies import rehearsal
from workers.strategies.losses import mean_over
from workers.strategies.rehearsal import label_shares
from workers.strategies.teachers import positions, row_logits
from workers.training.batches import Batch
from workers.training.model import AdaptedModel
from workers.training.run import Parent, Run


class Params(rehearsal.BalancedParams):
    """Parameters of `derpp`."""

    alpha: float = Field(default=0.3, ge=0.0, le=100.0, description="α, weight of the stored logits")
    beta: float = Field(default=0.5, ge=0.0, le=100.0, description="β, weight of the buffered rows' labels")
    fraction: float = rehearsal.share(2 / 3)


class Derpp(rehearsal.Rehearsing):
    """Rehearse buffered rows with their labels and with their stored logits."""

    name = "derpp"
    adapter_types = ("lora", "dora", "oft")
    summary = "Replay with soft targets: buffered examples keep the answers of the version that learnt them"
    params_type = Params
    params: Params

    @property
    def replay_draws(self) -> int:
        """One draw for the logits and one for the labels."""
        return 2

    def start(self, run: Run) -> None:
        """Gather the buffer's logits, the parent's own where none are stored, and the labels' shares."""
        self.position = positions(run.replay)
        self.stored = torch.zeros(len(run.replay), 0, device=run.device)
        if run.parent is not None:
            self.stored = gathered(run, run.parent)
        mixed = self.params.beta / (1.0 + self.params.beta)
        self.offsets = self.params.balance * label_shares(run, mixed).log()

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """The three terms of the formula above; the first alone where there is no buffer."""
        logits = model(batch)
        each = functional.cross_entropy(logits + self.offsets, batch.labels, reduction="none")
        loss = mean_over(each, batch.draw == 0)
        if not self.position:
            return loss
        drift = mean_over(self.drift(logits, batch), batch.draw == 1)
        return loss + self.params.alpha * drift + self.params.beta * mean_over(each, batch.draw == 2)

    def drift(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean squared difference [rows] from the stored logits, over the labels they know.

        What it says of a row that is not of the buffer has no meaning.
        """
        rows = torch.tensor([self.position.get(id_, 0) for id_ in batch.ids], device=self.stored.device)
        stored = self.stored[rows]
        known = ~stored.isnan()
        squares = torch.where(known, logits[:, : stored.shape[1]] - stored, 0.0).square()
        return squares.sum(1) / known.sum(1).clamp(min=1)

    def finish(self, run: Run) -> dict[str, Tensor]:
        """Return the buffer's ids [n] and logits [n, the parent's labels], NaN for labels a row's version lacked."""
        if self.stored.numel() == 0:
            return {}
        return {"ids": torch.from_numpy(run.replay.ids), "logits": self.stored.cpu()}


def gathered(run: Run, parent: Parent) -> Tensor:
    """Logits [buffered rows, the parent's labels]: from the parent's state, or else the parent's own."""
    logits = torch.full((len(run.replay), parent.labels or 0), float("nan"))
    state = parent.state or {"ids": torch.zeros(0), "logits": torch.zeros(0, 0)}
    place = {int(id_): index for index, id_ in enumerate(state["ids"])}
    found = np.array([int(id_) in place for id_ in run.replay.ids], dtype=bool)
    known = [place[int(id_)] for id_ in run.replay.ids[found]]
    logits[found, : state["logits"].shape[1]] = state["logits"][known]
    missing = run.replay.take(np.flatnonzero(~found))
    logits[~found] = row_logits(run, missing, labels=logits.shape[1]).cpu()
    return logits.to(run.device)
