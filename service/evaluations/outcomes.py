"""What one version answered on one eval set, example by example, and how two versions differ.

Outcomes are stored as a few bytes per example, in the order of the eval set's ids; the ids are stored once
per eval set. Two versions are always compared on exactly the examples that both were scored on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.evaluations.significance import paired_bootstrap

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int32]
Values = NDArray[np.float32]

NO_LABEL = -1
"""`predicted` where no label was chosen, as in generation."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """Holds one version's answers on one eval set: five arrays of one length, one entry per example.

    `predicted` is an index into the version's labels (`NO_LABEL` for none), `confidence` the probability of
    that label, `graded` the score of tasks that are not simply right or wrong (mean token log-likelihood).
    Arrays are converted to the stated types. Raises ValueError when lengths differ or an id comes twice.
    """

    example_ids: Ids
    correct: Flags
    predicted: Labels
    confidence: Values
    graded: Values | None = None

    def __post_init__(self) -> None:
        _convert(self, "example_ids", np.int64)
        _convert(self, "correct", np.bool_)
        _convert(self, "predicted", np.int32)
        _convert(self, "confidence", np.float32)
        if self.graded is not None:
            _convert(self, "graded", np.float32)
        if np.unique(self.example_ids).size != self.example_ids.size:
            raise ValueError("outcomes name an example twice")

    def __len__(self) -> int:
        return int(self.example_ids.size)


@dataclass(frozen=True, slots=True)
class PackedOutcomes:
    """Holds outcomes as bytes columns, aligned with the eval set's order of example ids.

    `correct`: one bit per example, first example in the highest bit. `predicted`: little-endian int16, or
    int32 where an index needs it (the length tells which). `confidence`: little-endian float16, good to
    three digits. `graded`: little-endian float32, or None.
    """

    size: int
    correct: bytes
    predicted: bytes
    confidence: bytes
    graded: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Paired:
    """Holds the outcomes of two versions on the examples both were scored on, in rising order of id.

    `a` is the version before (parent or champion), `b` the one after (child or candidate). The graded arrays
    are None unless both versions have graded values.
    """

    example_ids: Ids
    a_correct: Flags
    b_correct: Flags
    a_graded: Values | None = None
    b_graded: Values | None = None

    def __len__(self) -> int:
        return int(self.example_ids.size)

    def scores(self) -> tuple[float, float]:
        """The mean scores of `a` and `b` on these examples: of the graded values where both have them."""
        if self.a_graded is None or self.b_graded is None:
            return float(self.a_correct.mean()), float(self.b_correct.mean())
        return float(self.a_graded.mean(dtype=np.float64)), float(self.b_graded.mean(dtype=np.float64))


def pack(outcomes: Outcomes, order: Ids) -> PackedOutcomes:
    """Returns the outcomes as bytes in the given order of example ids, whatever order they come in.

    Raises ValueError unless the outcomes cover exactly the examples of `order`.
    """
    at = _positions(outcomes.example_ids, np.asarray(order, dtype=np.int64))
    if at.size != len(outcomes):
        raise ValueError(f"the eval set has {at.size} examples, the outcomes {len(outcomes)}")
    predicted = outcomes.predicted[at]
    narrow = np.iinfo(np.int16)
    fits = predicted.size == 0 or (predicted.min() >= narrow.min and predicted.max() <= narrow.max)
    return PackedOutcomes(
        size=int(at.size),
        correct=np.packbits(outcomes.correct[at]).tobytes(),
        predicted=predicted.astype("<i2" if fits else "<i4").tobytes(),
        confidence=outcomes.confidence[at].astype("<f2").tobytes(),
        graded=None if outcomes.graded is None else outcomes.graded[at].astype("<f4").tobytes(),
    )


def unpack(packed: PackedOutcomes, order: Ids) -> Outcomes:
    """Returns the outcomes that `pack` stored, in the eval set's order.

    `confidence` comes back rounded to float16. Raises ValueError when a column's length does not suit
    `order`, which means that the outcomes belong to another eval set or are damaged.
    """
    ids = np.asarray(order, dtype=np.int64)
    size = ids.size
    wide = len(packed.predicted) == 4 * size
    _require_length("size", packed.size, size)
    _require_length("correct", len(packed.correct), (size + 7) // 8)
    _require_length("predicted", len(packed.predicted), (4 if wide else 2) * size)
    _require_length("confidence", len(packed.confidence), 2 * size)
    if packed.graded is not None:
        _require_length("graded", len(packed.graded), 4 * size)
    bits = np.frombuffer(packed.correct, dtype=np.uint8)
    return Outcomes(
        example_ids=ids,
        correct=np.unpackbits(bits, count=size).astype(np.bool_),
        predicted=np.frombuffer(packed.predicted, dtype="<i4" if wide else "<i2").astype(np.int32),
        confidence=np.frombuffer(packed.confidence, dtype="<f2").astype(np.float32),
        graded=None if packed.graded is None else np.frombuffer(packed.graded, "<f4").astype(np.float32),
    )


def pair(a: Outcomes, b: Outcomes) -> Paired:
    """Returns two versions' outcomes on the examples both were scored on; `a` is the version before."""
    ids, at_a, at_b = np.intersect1d(a.example_ids, b.example_ids, assume_unique=True, return_indices=True)
    graded = a.graded is not None and b.graded is not None
    return Paired(
        example_ids=ids,
        a_correct=a.correct[at_a],
        b_correct=b.correct[at_b],
        a_graded=a.graded[at_a] if graded and a.graded is not None else None,
        b_graded=b.graded[at_b] if graded and b.graded is not None else None,
    )


def on_examples(outcomes: Outcomes, ids: Ids) -> Outcomes:
    """Returns the outcomes on those of these examples that they cover, in their own order."""
    at = np.isin(outcomes.example_ids, ids)
    return Outcomes(
        example_ids=outcomes.example_ids[at],
        correct=outcomes.correct[at],
        predicted=outcomes.predicted[at],
        confidence=outcomes.confidence[at],
        graded=None if outcomes.graded is None else outcomes.graded[at],
    )


def flips(paired: Paired) -> tuple[Ids, Ids]:
    """Returns the example ids that turned wrong and those that turned right, each in rising order.

    A negative flip is an example that the version before had right and the version after has wrong
    (Yan et al. 2021, "Positive-Congruent Training", arXiv 2011.09161).
    """
    negative = paired.example_ids[paired.a_correct & ~paired.b_correct]
    positive = paired.example_ids[~paired.a_correct & paired.b_correct]
    return negative, positive


def graded_interval(paired: Paired | None, *, confidence: float) -> tuple[float, float] | None:
    """Returns bounds on the change of the mean graded score from `a` to `b`, each at `confidence` (`paired_bootstrap`).

    Infinite on a single example; None where there is no pair or the answers are not graded.
    """
    if paired is None or paired.a_graded is None or paired.b_graded is None or not len(paired):
        return None
    differences = paired.b_graded.astype(np.float64) - paired.a_graded.astype(np.float64)
    return paired_bootstrap(differences, confidence, seed=0)


def accuracy(outcomes: Outcomes) -> float | None:
    """Returns the share of examples answered rightly, or None where there are no examples."""
    return float(outcomes.correct.mean()) if len(outcomes) else None


def mean_score(outcomes: Outcomes) -> float | None:
    """Returns the mean of the graded values where there are any, else the accuracy; None without examples."""
    if outcomes.graded is None or not len(outcomes):
        return accuracy(outcomes)
    return float(outcomes.graded.mean(dtype=np.float64))


def carried_scores(versions: Sequence[Outcomes | None]) -> list[float | None]:
    """Returns each version's mean score carried to the examples of the last scored one: a column to subtract in.

    An eval set that grew makes a later score stand on other examples than an earlier one, so that their bare
    difference mixes forgetting with a change of the yardstick. Here the last scored version keeps its own score a,
    and an earlier one gets a − d, where d is the difference of the two on the examples both were scored on. Every
    difference to the last is then exactly the paired one. None where there is no score, or no example in common.
    """
    last = next((outcomes for outcomes in reversed(versions) if outcomes is not None), None)
    level = None if last is None else mean_score(last)
    if last is None or level is None:
        return [None] * len(versions)
    return [None if outcomes is None else _carried(outcomes, last, level) for outcomes in versions]


def _carried(outcomes: Outcomes, last: Outcomes, level: float) -> float | None:
    paired = pair(outcomes, last)
    if len(paired.example_ids) == 0:
        return None
    before, after = paired.scores()
    return level - after + before


def _convert(outcomes: Outcomes, name: str, dtype: type[np.generic]) -> None:
    column = np.asarray(getattr(outcomes, name), dtype=dtype)
    if column.shape != (np.size(outcomes.example_ids),):
        raise ValueError(f"{name} has shape {column.shape}, not one entry per example")
    object.__setattr__(outcomes, name, column)


def _positions(ids: Ids, order: Ids) -> NDArray[np.intp]:
    by_id = np.argsort(ids, kind="stable")
    found = np.searchsorted(ids, order, sorter=by_id)
    if np.any(found >= ids.size) or not np.array_equal(ids[by_id[found]], order):
        raise ValueError("the eval set has examples that the version was not scored on")
    return by_id[found]


def _require_length(column: str, actual: int, expected: int) -> None:
    if actual != expected:
        raise ValueError(f"{column} is {actual} long, but this eval set needs {expected}")
