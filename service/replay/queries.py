"""Reads of the replay buffer: the lowest priorities of each stratum along a lineage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session
from sqlalchemy.types import BigInteger, Float, Text

from service.models import Model
from service.replay.quotas import Candidate, select, water_fill

# Which ancestors taught which stratum, by skipping from stratum to stratum in the primary key's index.
TAUGHT = text("""
    WITH RECURSIVE taught (version, stratum) AS (
        SELECT v.version, (
            SELECT e.stratum FROM replay_entries e
            WHERE e.tenant_id = :tenant AND e.model_id = :model AND e.version = v.version
            ORDER BY e.stratum LIMIT 1)
        FROM unnest(:lineage) AS v(version)
        UNION ALL
        SELECT t.version, (
            SELECT e.stratum FROM replay_entries e
            WHERE e.tenant_id = :tenant AND e.model_id = :model AND e.version = t.version AND e.stratum > t.stratum
            ORDER BY e.stratum LIMIT 1)
        FROM taught t WHERE t.stratum IS NOT NULL
    )
    SELECT version, stratum FROM taught WHERE stratum IS NOT NULL ORDER BY stratum, version
""").bindparams(bindparam("lineage", type_=ARRAY(BigInteger)))

# The next `count` of each (ancestor, stratum) in rank, by index; rows corrected by the cut are passed over, and those erased
# have taken their entries with them. Corrected rows have an index of their own: no other row of `examples` is looked at.
NEXT = text("""
    SELECT p.version, p.stratum, e.priority, e.example_id
    FROM unnest(:versions, :strata, :priorities, :ids, :counts) AS p(version, stratum, priority, id, count)
    CROSS JOIN LATERAL (
        SELECT r.priority, r.example_id FROM replay_entries r
        WHERE r.tenant_id = :tenant AND r.model_id = :model AND r.version = p.version AND r.stratum = p.stratum
        AND (r.priority, r.example_id) > (p.priority, p.id)
        AND NOT EXISTS (
            SELECT FROM examples x WHERE x.tenant_id = r.tenant_id AND x.id = r.example_id
            AND x.superseded_batch IS NOT NULL AND x.superseded_batch <= :cut)
        ORDER BY r.priority, r.example_id LIMIT p.count
    ) e
""").bindparams(
    bindparam("versions", type_=ARRAY(BigInteger)),
    bindparam("strata", type_=ARRAY(Text)),
    bindparam("priorities", type_=ARRAY(Float(53))),
    bindparam("ids", type_=ARRAY(BigInteger)),
    bindparam("counts", type_=ARRAY(BigInteger)),
)

Rank = tuple[float, int]  # priority, then example id
BEFORE_ALL: Rank = (0.0, 0)  # priorities lie above 0
BEHIND_ALL: Rank = (math.inf, 0)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A version's replay buffer: the chosen examples by stratum, priority and id, and how full strata are."""

    entries: tuple[Candidate, ...]
    strata: int

    @property
    def example_ids(self) -> list[int]:
        """The ids of the buffer's examples in ascending order."""
        return sorted(entry.example_id for entry in self.entries)


def read_buffer(
    session: Session,
    *,
    model: Model,
    lineage: Sequence[int],
    cut: int,
    capacity: int | None = None,
    weights: Mapping[str, int] | None = None,
) -> Buffer:
    """Returns the buffer that the last version of `lineage` hands on, as seen at the data cut.

    Strata share it equally, or by their `weights` (see `quotas.water_fill`).
    Costs O(M) for a buffer of M rows, whatever the table's size and however many ancestors taught a stratum:
    every stratum is read by index up to its share, and only those that can fill more are read further.
    """
    budget = int(model.replay["capacity"]) if capacity is None else capacity
    teachers = _teachers(session, model=model, lineage=lineage)
    if budget == 0 or not teachers:
        return Buffer(entries=(), strata=len(teachers))
    admissions = _Admissions(session, model=model, cut=cut, teachers=teachers)
    found: dict[str, list[Candidate]] = {}
    shares = water_fill(budget, dict.fromkeys(teachers, budget), weights)
    depths = wanted = {stratum: share + 1 for stratum, share in shares.items()}
    while wanted:
        found |= admissions.lowest(wanted)
        # What a stratum read to its full depth holds beyond is unknown; were it endless, its quota would be this.
        endless = {s: budget + 1 if len(found[s]) >= depths[s] else len(found[s]) for s in found}
        quotas = water_fill(budget, endless, weights)
        wanted = {stratum: quotas[stratum] for stratum in found if quotas[stratum] > depths[stratum]}
        depths = depths | wanted
    chosen = select([candidate for rows in found.values() for candidate in rows], budget, weights)
    return Buffer(entries=tuple(chosen), strata=len(teachers))


def count_strata(session: Session, *, model: Model, lineage: Sequence[int]) -> int:
    """Returns how many strata the lineage has taught: a buffer with fewer slots must leave some out."""
    return len(taught_strata(session, model=model, lineage=lineage))


def taught_strata(session: Session, *, model: Model, lineage: Sequence[int]) -> list[str]:
    """Returns the strata that the lineage has taught, by name."""
    return list(_teachers(session, model=model, lineage=lineage))


def _teachers(session: Session, *, model: Model, lineage: Sequence[int]) -> dict[str, list[int]]:
    taught = session.execute(TAUGHT, {"tenant": model.tenant_id, "model": model.id, "lineage": list(lineage)})
    teachers: dict[str, list[int]] = {}
    for version, stratum in taught:
        teachers.setdefault(stratum, []).append(version)
    return teachers


@dataclass(slots=True)
class _Reading:
    """How far the admissions of one version to one stratum have been read."""

    version: int
    stratum: str
    rows: int = 0
    last: Rank = BEFORE_ALL
    ended: bool = False


class _Admissions:
    """What the versions of a lineage admitted, each stratum read in rank order as far as it was asked for.

    Of a stratum that k versions taught, each holds about a k-th of the lowest priorities, for they are independent
    of the version. So each is read that far, and further only while it may yet hold one of those asked for.
    """

    def __init__(
        self, session: Session, *, model: Model, cut: int, teachers: Mapping[str, Sequence[int]]
    ) -> None:
        self._session = session
        self._values = {"tenant": model.tenant_id, "model": model.id, "cut": cut}
        self._readings = {
            stratum: [_Reading(version, stratum) for version in versions]
            for stratum, versions in teachers.items()
        }
        self._found: dict[str, dict[int, Candidate]] = {stratum: {} for stratum in teachers}

    def lowest(self, depths: Mapping[str, int]) -> dict[str, list[Candidate]]:
        """Returns the lowest `depths[stratum]` examples of each stratum in rank order, fewer where it has no more."""
        wanted = dict(depths)
        while wanted:
            behind = {stratum: self._behind(stratum, depth) for stratum, depth in wanted.items()}
            wanted = {stratum: wanted[stratum] for stratum, readings in behind.items() if readings}
            self._read(
                [
                    (reading, max(_share(depth, len(self._readings[stratum])), reading.rows))
                    for stratum, depth in wanted.items()
                    for reading in behind[stratum]
                ]
            )
        return {stratum: self._ranked(stratum)[:depth] for stratum, depth in depths.items()}

    def _ranked(self, stratum: str) -> list[Candidate]:
        return sorted(self._found[stratum].values(), key=_rank)

    def _behind(self, stratum: str, depth: int) -> list[_Reading]:
        """The versions that may hold one of the stratum's lowest `depth` examples that was not read yet."""
        ranked = self._ranked(stratum)
        bound = _rank(ranked[depth - 1]) if len(ranked) >= depth else BEHIND_ALL
        return [reading for reading in self._readings[stratum] if not reading.ended and reading.last < bound]

    def _read(self, further: Sequence[tuple[_Reading, int]]) -> None:
        if not further:
            return
        readings = {(reading.version, reading.stratum): reading for reading, _ in further}
        before = {key: reading.rows for key, reading in readings.items()}
        rows = self._session.execute(
            NEXT,
            {
                **self._values,
                "versions": [reading.version for reading, _ in further],
                "strata": [reading.stratum for reading, _ in further],
                "priorities": [reading.last[0] for reading, _ in further],
                "ids": [reading.last[1] for reading, _ in further],
                "counts": [count for _, count in further],
            },
        )
        for version, stratum, priority, example_id in rows:
            reading = readings[version, stratum]
            reading.rows += 1
            reading.last = max(reading.last, (priority, example_id))
            self._offer(Candidate(stratum=stratum, priority=priority, example_id=example_id))
        for reading, count in further:
            reading.ended = reading.rows - before[reading.version, reading.stratum] < count

    def _offer(self, candidate: Candidate) -> None:
        """Keeps an example once, at its lowest priority."""
        known = self._found[candidate.stratum].get(candidate.example_id)
        if known is None or candidate.priority < known.priority:
            self._found[candidate.stratum][candidate.example_id] = candidate


def _rank(candidate: Candidate) -> Rank:
    return candidate.priority, candidate.example_id


def _share(depth: int, versions: int) -> int:
    """How far to read one of the versions that taught a stratum: its expected share and four standard deviations."""
    mean = -(-depth // versions)
    return min(depth, mean + 4 * math.isqrt(mean) + 4)
