"""Choose the strategy by trial: successive halving over a portfolio, on rows held out of the update's own data.

A fifth of the fresh and of the buffered rows (512 of each at most, by task and label) is held out. With n candidates and R = ⌈log₂ n⌉
rungs, every rung may spend B/R rows of training, B = `budget` times the rows of one plain update: its
candidates all train the same share of their own full update, starting from the parent each time, and the better half
goes on to the next rung. The best of the last rung then trains in full, on all rows, those held out included, and
that is the version. A candidate is as good as

    (1 − w) · mean over new tasks of accuracy + w · mean over old tasks of accuracy,    w = `stability_weight`,

on the held-out fresh and buffered rows; ties go to the higher old accuracy, then to the earlier in the portfolio.
The eval set takes no part. The search is deterministic under the update's seed.

`budget` bounds the search alone, counted in rows through an optimiser step (for a strategy that takes no steps: rows
forwarded); the final training comes on top, and so do forward passes over the held-out rows. Where the budget cannot give every
candidate a few steps, the last of the portfolio are left out. Strategies that cannot take the update (adapter, task
type, missing state, diverged) drop out with the reason. There is no search without a parent (nothing can be forgotten:
plain training), nor without buffered rows while w > 0 (what is forgotten cannot be seen: the first of the portfolio that can
take the update is trained). `version.json` and the result tell everything under `auto`; the version's `strategy`,
parameters and state are the winner's.

Source: successive halving, Jamieson & Talwalkar 2016 (arXiv 1502.07943, algorithm 1); on restarting trials with more of a
resource, Hyperband, Li et al. 2018 (arXiv 1603.06560, section 3).
Defaults: a budget of two plain updates; stability and plasticity weigh the same. Halving as in the paper.
Wins: when nobody knows the stream: how much it overlaps with what was learnt, how large the buffer is.
Costs: `budget` plain updates, then the winner. Short trials favour what learns fast; with few held-out rows the
choice is noisy (the record tells the standard error). `joint` never takes part: it needs every row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from workers.strategies import base


class Params(base.Params):
    """Parameters of `auto`."""

    budget: float = Field(
        default=2.0,
        ge=0.1,
        le=100.0,
        description="rows that the search may train on, in multiples of one plain update; the final training comes on top",
    )
    stability_weight: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="weight of old tasks against new ones when candidates are compared",
    )


class Auto(base.Offer):
    """Not trained with itself: `workers.training.search` finds the strategy that is."""

    name = "auto"
    summary = "Try the other strategies briefly on the update's own rows, then train with the best"
    adapter_types = ("lora", "dora", "oft")
    needs_replay = True
    probes = False  # what it trains with is found by a search
    params_type = Params
    params: Params


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy with its parameters. `rehearses`: it is nothing without buffered rows."""

    strategy: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rehearses: bool = False


PORTFOLIO = (
    Candidate("replay", rehearses=True),
    Candidate("derpp", rehearses=True),
    Candidate("analytic"),
    Candidate("replay", {"fraction": 0.75}, rehearses=True),
    Candidate("lwf"),
    Candidate("ewc"),
    Candidate("merge"),
    Candidate("sequential"),
    Candidate("replay", {"fraction": 0.25}, rehearses=True),
    Candidate("ewc", {"strength": 1000.0}),
    Candidate("olora"),
    Candidate("osft"),
    Candidate("agem", rehearses=True),
)
"""In the order of what did best elsewhere: a small budget tries the first ones only."""
