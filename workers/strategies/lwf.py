"""Learning without forgetting: learn the new rows while giving the parent's answers about the old labels.

    L = CE(fresh) + λ · T² · KL( softmax(z_parent / T) ‖ softmax(z_old / T) ),

z_old being the logits of the labels that the parent knew, and the divergence averaged over fresh and buffered rows.
The cross-entropy is of logits shifted by τ·log of the labels' shares among the fresh rows, as in `replay`: at τ = 1
it hardly presses down labels of which no fresh row speaks, as in the paper, whose new rows meet only the new
labels. The old softmax alone is distilled: it does not see a common fall of all old logits, and an old row
says nothing of the new labels. That is LwF's known failure when labels are added and task ids are not given.

Source: Li & Hoiem 2016 (arXiv 1606.09282, eq. 1–4); T² as in Hinton et al. 2015 (arXiv 1503.02531,
section 2), so that λ means the same at every temperature.
Defaults: λ = 1 and T = 2 are the paper's. τ = 1 ends five tasks of split digits at 0.31, τ = 0 at 0.20. Half of the mix
is buffered where a buffer is sent: those rows are distilled, their labels are not used.
Wins: no old row may be kept and new domains bring the same labels. With a buffer, `replay` and
`derpp` make more of it.
Costs: one forward per row before the first step (its answers are then kept: labels × rows float32), and the
buffered rows' share of the mix. No state.
"""

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from workers.strategies import base, rehearsal
from workers.strategies.losses import mean_over
from workers.strategies.rehearsal import label_shares
from workers.strategies.teachers import LiveTeacher, StoredTeacher, Teacher
from workers.training.batches import Batch
from workers.training.model import AdaptedModel
from workers.training.run import Run


class Params(rehearsal.BalancedParams):
    """Parameters of `lwf`."""

    strength: float = Field(default=1.0, ge=0.0, le=1000.0, description="λ, weight of the parent's answers")
    temperature: float = Field(
        default=2.0, ge=0.1, le=100.0, description="T, softens both answers before they are compared"
    )


class Lwf(rehearsal.Rehearsing):
    """Distil the parent's answers about the old labels while learning the new rows."""

    name = "lwf"
    adapter_types = ("lora", "dora", "oft")
    summary = "Learn new examples while keeping the parent's answers about the old labels; needs no buffer"
    task_types = base.ALL_TASK_TYPES
    params_type = Params
    params: Params

    def start(self, run: Run) -> None:
        """Ask the parent, which the model still is, also where a checkpoint is about to be taken up."""
        self.teacher: Teacher | None = None
        self.offsets: Tensor | float = 0.0
        if run.request.task_type != "text-classification":
            self.teacher = LiveTeacher(run.model)
            return
        self.offsets = self.params.balance * label_shares(run, 0.0).log()
        if run.parent is not None:
            self.teacher = StoredTeacher(run, labels=run.parent.labels or 0)

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Mean cross-entropy of the fresh rows plus the divergence from the parent on all."""
        logits = model(batch)
        each = functional.cross_entropy(logits + self.offsets, batch.labels, reduction="none")
        learnt = mean_over(each, ~batch.replayed)
        if self.teacher is None:
            return learnt
        target = self.teacher.logits(model, batch)
        kept = divergence(target, logits[:, : target.shape[1]], self.params.temperature)
        return learnt + self.params.strength * kept


def divergence(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(target / T) ‖ softmax(logits / T)) of logits [n, classes], averaged over n."""
    old, new = (functional.log_softmax(z.float() / temperature, dim=-1) for z in (target, logits))
    return temperature**2 * functional.kl_div(new, old, reduction="batchmean", log_target=True)
