"""Pieces of losses that several strategies share."""

from torch import Tensor


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of `values` [n] over the rows `chosen` [n], 0 where none is.

    A weighted sum, not an index: a boolean index on a GPU would wait for the device at every step.
    """
    weights = chosen.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1.0)
