"""What the tests of orderings share: the engine on digits, and the mean accuracy of a strategy over seeds.

What was published and does not hold here is in docs/benchmarks.md, with numbers; it is not asserted.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.lineage import learn
from bench.streams import Stream

SEEDS = (0, 1, 2)


@cache
def average_accuracies(make: Callable[..., Stream], strategy: str, **parameters: float) -> tuple[float, ...]:
    """The average accuracy after the last task, by seed."""
    torch.set_num_threads(1)
    scores = []
    for seed in SEEDS:
        with TemporaryDirectory() as folder:
            stream = make(seed)
            chosen: Mapping[str, Any] | None = parameters or None
            lineage = learn(stream, strategy, seed=seed, folder=Path(folder), parameters=chosen)
        score = lineage.summary.average_accuracy
        assert score is not None
        scores.append(score)
    return tuple(scores)


def mean_of(make: Callable[..., Stream], strategy: str, **parameters: float) -> float:
    return fmean(average_accuracies(make, strategy, **parameters))
