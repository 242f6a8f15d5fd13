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

from torch import Tensor
from torch.nn import functional

from workers.strategies import base, rehearsal
from workers.strategies.rehearsal import offsets_of
from workers.training.batches import Batch
from workers.training.model import AdaptedModel
from workers.training.run import Run


class Params(rehearsal.BalancedParams):
    """Parameters of `replay`."""


class Replay(rehearsal.Rehearsing):
    """Rehearse buffered rows beside fresh ones, corrected for the shares of the labels."""

    name = "replay"
    summary = "Mix buffered examples of earlier tasks into training: the default"
    adapter_types = ("lora", "dora", "oft")
    task_types = base.ALL_TASK_TYPES
    many_devices = True
    params_type = Params
    params: Params

    def start(self, run: Run) -> None:
        """Work out the labels' shares of the mix."""
        self.offsets = self.params.balance * offsets_of(run, self.params.fraction)

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy of the shifted logits over the batch."""
        return functional.cross_entropy(model(batch) + self.offsets, batch.labels)
