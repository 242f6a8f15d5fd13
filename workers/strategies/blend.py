"""Blending: a point between a version and its parent, in weight space. Nothing is trained.

    ΔW(β) = (1 − β)·ΔW_parent + β·ΔW_child,    0 < β < 1,

layer by layer and exactly, by concatenation of ranks (`algebra.average`), compressed by a truncated SVD only past
`adapter.max_rank`, with the relative error recorded. β is the dial between stability (0 is the parent) and plasticity (1 is
the version). A parent without an adapter, the untouched base, counts with ΔW = 0: the version's adapter is scaled down.

The head of a classifier moves with it: rows of labels that both have become (1 − β)·parent + β·child. A label that only the
version has keeps the version's row as it is. There is nothing to move it from: a row of zeros is no neutral start, for it
would give the label the logit 0 and so an arbitrary place among the others, whose logits lie where training has put them. So
with β towards 0 a new label keeps its full row while the features under it go back, and its scores say what that is worth.
A parent without a head (the base) leaves the whole head as it is.

Source: WiSE-FT, Wortsman et al. 2022 (arXiv 2109.01903, eq. 1), and Ilharco et al. 2022 (arXiv 2208.05592), in ΔW instead of
the full weights; in ΔW, not in A and B entry by entry, which would mix the factors of different products.
Wins: when an update taught what it should and cost too much: a large part of the new is often kept at a small part of the
cost. `GET …/versions/{version}/dial` shows how much. Costs: seconds, and a rank up to the sum of both.
Interpolation promises nothing where version and parent do not share a basin, as after `joint`, which starts from the base.
Text is read at the version's `max_length`. What its strategy left for the next update (Fisher information, Gram
matrices) belongs to other parameters, so a blend leaves none: the next update rebuilds it from the buffer.
"""

from pydantic import Field

from workers.strategies import base


class Params(base.Params):
    """Parameters of `blend`."""

    beta: float = Field(
        default=0.5, ge=0.0, le=1.0, description="weight of the version; 1 − β is its parent's"
    )
    of: int = Field(default=1, ge=1, le=2**31, description="version that is blended with its parent")


class Blend(base.Offer):
    """Not trained with: `workers.training.blending` adds two versions up."""

    name = "blend"
    summary = "Interpolate between a version and its parent, without training"
    task_types = base.ALL_TASK_TYPES
    offered = False
    seeded = False
    probes = False
    params_type = Params
    params: Params
