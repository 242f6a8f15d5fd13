"""What an update rehearses first: the weights of a buffer's strata beyond an equal share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.evaluations.queries import load_flip_histories
from service.examples.queries import visible
from service.models import Example, Model
from service.registry.queries import task_names
from service.replay.queries import taught_strata
from service.replay.quotas import PLAIN_WEIGHT, flip_weights, stratum


@dataclass(frozen=True, slots=True)
class FlipBoost:
    """The strata's weights, and the negative flips and comparisons of their eval examples that they stand on."""

    weights: Mapping[str, int]
    flips: Mapping[str, tuple[int, int]]

    def record(self) -> dict[str, Any]:
        """What a version's provenance says of it: every stratum that weighs more than the others' 1."""
        return {
            name: {"negative_flips": self.flips[name][0], "comparisons": self.flips[name][1], "weight": weight / PLAIN_WEIGHT}
            for name, weight in sorted(self.weights.items())
            if weight != PLAIN_WEIGHT
        }  # fmt: skip


def flip_boost(session: Session, *, model: Model, lineage: Sequence[int], cut: int) -> FlipBoost:
    """Returns how much more than others each stratum is rehearsed because its eval examples flipped negatively.

    Flips are counted along the lineage, on the eval examples visible at the cut; erased ones count no longer. The rule
    is `quotas.flip_weights`. Same lineage, scores and data: same weights.
    """
    names = task_names(session, model=model)
    labels = _eval_labels(session, task_ids=names, cut=cut)
    flips: dict[str, tuple[int, int]] = {}
    for task_id, history in load_flip_histories(
        session, model=model, lineage=lineage, task_ids=names
    ).items():
        columns = (history.example_ids, history.negative, history.compared)
        for example, negative, compared in zip(*(column.tolist() for column in columns), strict=True):
            if example in labels:
                name = stratum(model.replay["policy"], names[task_id], labels[example])
                before = flips.get(name, (0, 0))
                flips[name] = (before[0] + negative, before[1] + compared)
    strata = taught_strata(session, model=model, lineage=lineage)
    return FlipBoost(weights=flip_weights(strata, flips), flips=flips)


def _eval_labels(session: Session, *, task_ids: Iterable[str], cut: int) -> dict[int, str | None]:
    """The label of every eval example of these tasks that the cut shows."""
    rows = session.execute(
        select(Example.id, Example.label).where(
            Example.task_id.in_(list(task_ids)), Example.split == "eval", visible(cut)
        )
    )
    return {example: label for example, label in rows}  # noqa: C416  # a Row is not a pair to dict()
