"""Reads of the replay buffer: the lowest priorities of each stratum along a lineage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session
from sqlalchemy.types import BigInteger, Text

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

# The lowest `depth` of each (ancestor, stratum), by index; rows erased or corrected by the cut are passed over.
LOWEST = text("""
    SELECT p.stratum, e.priority, e.example_id
    FROM unnest(:versions, :strata, :depths) AS p(version, stratum, depth)
    CROSS JOIN LATERAL (
        SELECT r.priority, r.example_id FROM replay_entries r
        JOIN examples x ON x.tenant_id = r.tenant_id AND x.id = r.example_id
        WHERE r.tenant_id = :tenant AND r.model_id = :model AND r.version = p.version AND r.stratum = p.stratum
        AND (x.superseded_batch IS NULL OR x.superseded_batch > :cut)
        ORDER BY r.priority, r.example_id LIMIT p.depth
    ) e
""").bindparams(
    bindparam("versions", type_=ARRAY(BigInteger)),
    bindparam("strata", type_=ARRAY(Text)),
    bindparam("depths", type_=ARRAY(BigInteger)),
)


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
    session: Session, *, model: Model, lineage: Sequence[int], cut: int, capacity: int | None = None
) -> Buffer:
    """Returns the buffer that the last version of `lineage` hands on, as seen at the data cut.

    Costs O(M × ancestors that taught a stratum) for a buffer of M rows, whatever the table's size: every
    stratum is read by index up to an equal share, and only those that can fill more are read further.
    """
    budget = int(model.replay["capacity"]) if capacity is None else capacity
    teachers = _teachers(session, model=model, lineage=lineage)
    if budget == 0 or not teachers:
        return Buffer(entries=(), strata=len(teachers))
    found: dict[str, list[Candidate]] = {}
    depths = dict.fromkeys(teachers, budget // len(teachers) + 1)
    wanted = list(teachers)
    while wanted:
        pairs = [(version, stratum) for stratum in wanted for version in teachers[stratum]]
        found |= _lowest(session, model=model, pairs=pairs, depths=depths, cut=cut)
        sizes = {stratum: len({row.example_id for row in rows}) for stratum, rows in found.items()}
        # What a stratum read to its full depth holds beyond is unknown; were it endless, its quota would be this.
        endless = {s: budget + 1 if sizes[s] >= depths[s] else sizes[s] for s in found}
        quotas = water_fill(budget, endless)
        wanted = [stratum for stratum in found if quotas[stratum] > max(depths[stratum], sizes[stratum])]
        depths |= {stratum: quotas[stratum] for stratum in wanted}
    chosen = select([candidate for rows in found.values() for candidate in rows], budget)
    return Buffer(entries=tuple(chosen), strata=len(teachers))


def count_strata(session: Session, *, model: Model, lineage: Sequence[int]) -> int:
    """Returns how many strata the lineage has taught: a buffer with fewer slots must leave some out."""
    return len(_teachers(session, model=model, lineage=lineage))


def _teachers(session: Session, *, model: Model, lineage: Sequence[int]) -> dict[str, list[int]]:
    taught = session.execute(TAUGHT, {"tenant": model.tenant_id, "model": model.id, "lineage": list(lineage)})
    teachers: dict[str, list[int]] = {}
    for version, stratum in taught:
        teachers.setdefault(stratum, []).append(version)
    return teachers


def _lowest(
    session: Session, *, model: Model, pairs: Sequence[tuple[int, str]], depths: Mapping[str, int], cut: int
) -> dict[str, list[Candidate]]:
    rows = session.execute(
        LOWEST,
        {
            "tenant": model.tenant_id, "model": model.id, "cut": cut,
            "versions": [version for version, _ in pairs], "strata": [stratum for _, stratum in pairs],
            "depths": [depths[stratum] for _, stratum in pairs],
        },
    )  # fmt: skip
    found: dict[str, list[Candidate]] = {stratum: [] for _, stratum in pairs}
    for stratum, priority, example_id in rows:
        found[stratum].append(Candidate(stratum=stratum, priority=priority, example_id=example_id))
    return found
