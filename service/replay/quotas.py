"""Which examples the replay buffer holds: strata, priorities and quotas.

The buffer of a version is, for each stratum, the examples of lowest priority among those that its lineage
learnt, as many as the stratum's quota. These functions are the definition; the database queries are tested
against `select`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from typing import Literal

ReplayPolicy = Literal["reservoir", "balanced", "weighted", "herding"]

# (k + 1/2) / 2^52 is exact in a float and never rounds to 0 or 1; with 53 bits the top value would be 1.
_PRIORITY_BITS = 52
_BELOW_ONE = math.nextafter(1.0, 0.0)

PLAIN_WEIGHT = 1000
"""The weight of a stratum that nothing favours: weights are whole thousandths, so that quotas are exact."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example that the buffer may hold: its stratum and its priority in it, lowest first."""

    stratum: str
    priority: float
    example_id: int


def stratum(policy: ReplayPolicy, task_id: str, label: str | None) -> str:
    """Returns the stratum that an example belongs to under the policy.

    `reservoir` has one stratum for everything. `balanced`, `weighted` and `herding` have one per task and
    label, and one per task where examples have no label. Raises ValueError for an unknown policy, or a task
    id with a slash in it, since two pairs could then share a stratum.
    """
    if policy == "reservoir":
        return "all"
    if policy not in ("balanced", "weighted", "herding"):
        raise ValueError(f"unknown replay policy {policy!r}")
    if "/" in task_id:
        raise ValueError(f"a task id may not contain a slash: {task_id!r}")
    return task_id if label is None else f"{task_id}/{label}"


def priority(buffer_seed: int, task: str, content_hash: bytes, weight: float = 1.0) -> float:
    """Returns the example's priority in (0, 1), the same for the same seed, task and content.

    u is a keyed hash (BLAKE2b, RFC 7693) read as a uniform number, so that the q lowest of a stratum are a
    uniform sample without replacement, for every q at once and whatever the order of arrival. `buffer_seed`
    is a signed 64-bit number; `task` has to be the same after a restore (its name or stable id).

    With a weight w the priority is 1 − (1 − u)^(1/w), which makes the q lowest a sequential weighted sample
    without replacement: the next example is drawn with probability proportional to its weight.
    Proof: Efraimidis & Spirakis (2006, "Weighted random sampling with a reservoir", algorithm A) draw
    v ~ U(0, 1) and take the *highest* keys v^(1/w). Let v = 1 − u, which is U(0, 1) as well; then
    priority = 1 − v^(1/w) falls as their key rises, and the lowest priorities are their highest keys.
    (Directly: −ln(1 − priority) = −ln(v)/w is exponential with rate w, and of independent exponentials the
    one with rate w_i comes first with probability w_i / Σ w_j; what remains is memoryless.)

    Only ratios of weights matter. Scale them so that the smallest is 1 or more: far below 1, priorities crowd
    against 1, where floats can no longer tell them apart. Raises ValueError unless the weight is finite and
    positive.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"a weight must be finite and positive, not {weight}")
    uniform = _uniform(buffer_seed, task, content_hash)
    if weight == 1.0:
        return uniform
    weighted = -math.expm1(math.log1p(-uniform) / weight)
    return min(max(weighted, math.ulp(0.0)), _BELOW_ONE)


def herding_priority(rank: int, size: int) -> float:
    """Returns rank / (size + 1) for the example that herding chose at `rank` (1 to `size`) of its stratum.

    Rebuffi et al. 2017, "iCaRL", arXiv 1611.07725, algorithm 4: exemplars are kept in the order of selection,
    and a smaller budget keeps the first ones. Raises ValueError for a rank outside 1 to size.
    """
    if not 1 <= rank <= size:
        raise ValueError(f"rank {rank} is outside 1 to {size}")
    return rank / (size + 1)


def water_fill(
    capacity: int, sizes: Mapping[str, int], weights: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Returns a quota for each stratum, as near to its weight's share as sizes allow, summing to min(capacity, all rows).

    Without `weights` (1 or more; a stratum without one has `PLAIN_WEIGHT`) all shares are equal. Slots go out one by one,
    each to the stratum with rows left whose next slot, q + 1, is least by its weight; the first by name where several
    are. (That is D'Hondt's rule of apportionment.) So strata smaller than their share keep all their rows and give the
    rest of it away, and more capacity never lowers a quota. Raises ValueError for a negative capacity or size, or a
    weight below 1.
    """
    if capacity < 0 or any(size < 0 for size in sizes.values()):
        raise ValueError("capacity and stratum sizes must not be negative")
    weight = {name: (weights or {}).get(name, PLAIN_WEIGHT) for name in sizes}
    if any(value < 1 for value in weight.values()):
        raise ValueError("stratum weights must be 1 or more")
    quotas = _whole_shares(capacity, sizes, weight)
    left = min(capacity, sum(sizes.values())) - sum(quotas.values())
    waiting = [_claim(name, quotas[name], weight[name]) for name in sizes if quotas[name] < sizes[name]]
    heapify(waiting)
    for _ in range(left):
        _, name = heappop(waiting)
        quotas[name] += 1
        if quotas[name] < sizes[name]:
            heappush(waiting, _claim(name, quotas[name], weight[name]))
    return {name: quotas[name] for name in sorted(sizes)}


def _whole_shares(capacity: int, sizes: Mapping[str, int], weight: Mapping[str, int]) -> dict[str, int]:
    """The slots that the rule surely hands out: shares of the continuous water level, rounded down.

    All that remain are fewer than there are strata.
    """
    left, weights_left = capacity, sum(weight.values())
    shares: dict[str, int] = {}
    names = sorted(sizes, key=lambda name: Fraction(sizes[name], weight[name]))
    for position, name in enumerate(names):
        if sizes[name] * weights_left > left * weight[name]:
            return shares | {rest: left * weight[rest] // weights_left for rest in names[position:]}
        shares[name] = sizes[name]
        left -= sizes[name]
        weights_left -= weight[name]
    return shares


def _claim(name: str, quota: int, weight: int) -> tuple[Fraction, str]:
    return Fraction(quota + 1, weight), name


def flip_weights(strata: Iterable[str], flips: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Returns each stratum's weight for `water_fill` under the boost by negative flips, in thousandths.

    `flips` tells of a stratum's eval examples how often one turned wrong along the lineage, and of how many
    comparisons of a version's answer with the one before; their ratio is the stratum's negative flip rate r (Yan et al.
    2021, arXiv 2011.09161). A stratum that it does not name has r = 0. With r̄ the mean of r over all `strata`,

        w = 1 + r / r̄

    and w = 1 everywhere where nothing flipped. The weights' mean is 2, so that half of the slots are shared
    equally and half in proportion to the rates, however long the lineage is; no stratum falls below half of an equal
    share. Train rows are rehearsed for the eval rows of their stratum that flipped: those are never trained on.
    """
    rates = {name: flips[name][0] / flips[name][1] if flips.get(name, (0, 0))[1] else 0.0 for name in strata}
    total = math.fsum(rates.values())  # exactly rounded, whatever the order
    if total == 0:
        return dict.fromkeys(rates, PLAIN_WEIGHT)
    return {name: round(PLAIN_WEIGHT * (1 + len(rates) * rate / total)) for name, rate in rates.items()}


def select(
    candidates: Iterable[Candidate], capacity: int, weights: Mapping[str, int] | None = None
) -> list[Candidate]:
    """Returns the buffer: for each stratum the candidates of lowest priority, up to its water-filled quota.

    An example offered more than once (learnt again by a later version) counts once, at its lowest priority.
    Equal priorities are ordered by example id. The result is sorted by stratum, priority and example id.
    """
    best: dict[int, Candidate] = {}
    for candidate in candidates:
        known = best.get(candidate.example_id)
        if known is None or (candidate.priority, candidate.stratum) < (known.priority, known.stratum):
            best[candidate.example_id] = candidate
    strata: dict[str, list[Candidate]] = {}
    for candidate in best.values():
        strata.setdefault(candidate.stratum, []).append(candidate)
    quotas = water_fill(capacity, {name: len(members) for name, members in strata.items()}, weights)
    return [
        member
        for name, quota in quotas.items()
        for member in sorted(strata[name], key=lambda c: (c.priority, c.example_id))[:quota]
    ]


def _uniform(buffer_seed: int, task: str, content_hash: bytes) -> float:
    name = task.encode()
    # The length in front keeps (task, content) pairs apart that would concatenate to the same bytes.
    message = len(name).to_bytes(4, "big") + name + content_hash
    key = buffer_seed.to_bytes(8, "big", signed=True)
    digest = blake2b(message, key=key, digest_size=8, person=b"replay").digest()
    return ((int.from_bytes(digest, "big") >> (64 - _PRIORITY_BITS)) + 0.5) / 2.0**_PRIORITY_BITS
