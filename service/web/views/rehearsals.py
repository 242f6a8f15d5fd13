"""What the update that made a version rehearsed: how many rows of the buffer, of which tasks and labels, and a few of them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import among
from service.models import Example, Model, Version
from service.registry.queries import task_names
from service.replay.queries import Buffer
from service.replay.quotas import PLAIN_WEIGHT
from service.replay.rehearsals import boosted_weights, rehearsal_record, rehearsed_buffer
from service.updates.catalogue import strategies
from service.web.views.report import content_in_words

STRATA = ("task", "label", "rows", "share", "weight")
MOST_SHOWN = 60  # of the strata; the table as CSV has all
TEXTS_EACH = 2
MOST_ROWS = 20_000  # larger buffers are not read again for a page
REFERENCE_ONLY = frozenset({"agem"})  # buffered rows give a gradient to compare with, and are not fitted
Kind = tuple[str, str | None]
"""The name of a task, and a label."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """The rows of one task and label in the buffer."""

    task: str
    label: str | None
    rows: int
    share: float  # of the buffer
    weight: float  # of its share among the others; above 1 it was boosted
    texts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RehearsalView:
    """What the report of a version shows of its rehearsal."""

    strata: Sequence[Stratum]  # the largest first
    rows: int | None  # as the buffer is read now; None where it is too large for that
    rows_then: int | None  # as the update read it
    trained_rows: int | None  # of these, those that were not held out
    fresh_rows: int | None
    capacity: int
    strategy: str  # which trained; for `auto` the one it chose
    rehearses: bool
    is_reference: bool  # buffered rows are compared with, not fitted
    fraction: float | None  # of every batch; None where the strategy mixes no buffered rows in
    is_boosted: bool

    @property
    def shown(self) -> Sequence[Stratum]:
        """The strata that fit a page."""
        return self.strata[:MOST_SHOWN]

    @property
    def is_too_large(self) -> bool:
        """The buffer is not read again for a page."""
        return self.rows is None

    @property
    def held_out(self) -> int:
        """The rows of the buffer that were kept out of training, to choose by."""
        return _fewer(self.rows_then, self.trained_rows)

    @property
    def missing(self) -> int:
        """How many fewer rows there are now."""
        return _fewer(self.rows_then, self.rows)

    @property
    def tasks(self) -> Mapping[str, int]:
        """The rows of each task, the most first."""
        found: dict[str, int] = defaultdict(int)
        for stratum in self.strata:
            found[stratum.task] += stratum.rows
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _fewer(before: int | None, after: int | None) -> int:
    return 0 if before is None or after is None else max(0, before - after)


def view_rehearsal(session: Session, *, model: Model, version: Version) -> RehearsalView | None:
    """Returns what the page shows; None where the update read no buffer."""
    recorded = rehearsal_record(version)
    if recorded is None:
        return None
    strategy, parameters = _trained_with(version)
    info, told = strategies()[strategy], version.statistics
    weights, capacity = boosted_weights(recorded), int(recorded["capacity"])
    trained_rows = told.get("replay_rows")
    rows_then = recorded.get("rows", trained_rows)
    buffer = None
    if min(capacity, capacity if rows_then is None else rows_then) <= MOST_ROWS:
        buffer = rehearsed_buffer(session, model=model, version=version)
    if buffer is not None and "rows" not in recorded:
        # An older version's: it knows only how many were trained on, not how many were held out besides.
        rows_then = max(trained_rows or 0, len(buffer.entries))
    return RehearsalView(
        strata=() if buffer is None else _strata(session, model=model, buffer=buffer, weights=weights),
        rows=None if buffer is None else len(buffer.entries),
        rows_then=rows_then, trained_rows=trained_rows, fresh_rows=told.get("fresh_rows"),
        capacity=capacity, strategy=strategy, rehearses=info.needs_replay, is_reference=strategy in REFERENCE_ONLY,
        fraction=_fraction(info.parameters, parameters), is_boosted=bool(weights),
    )  # fmt: skip


def strata_rows(view: RehearsalView) -> list[Sequence[object]]:
    """Returns all strata as a table."""
    return [
        STRATA,
        *((found.task, found.label, found.rows, found.share, found.weight) for found in view.strata),
    ]


def _trained_with(version: Version) -> tuple[str, Mapping[str, Any]]:
    """The strategy that trained the version, and what was asked of it."""
    winner = (version.statistics.get("auto") or {}).get("winner")
    if winner is not None:
        return winner["strategy"], winner["parameters"]
    return version.strategy or "", version.parameters


def _fraction(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> float | None:
    declared = schema.get("properties", {}).get("fraction")
    return None if declared is None else float(parameters.get("fraction", declared["default"]))


def _strata(session: Session, *, model: Model, buffer: Buffer, weights: Mapping[str, int]) -> list[Stratum]:
    kinds = _kinds(session, model=model, ids=buffer.example_ids)
    members: dict[Kind, list[int]] = defaultdict(list)
    weight: dict[Kind, float] = {}
    for entry in buffer.entries:
        if (kind := kinds.get(entry.example_id)) is not None:  # else erased a moment ago
            members[kind].append(entry.example_id)
            weight[kind] = weights.get(entry.stratum, PLAIN_WEIGHT) / PLAIN_WEIGHT
    ordered = sorted(members, key=lambda key: (-len(members[key]), key[0], key[1] or ""))
    texts = _texts(
        session, ids=[found for key in ordered[:MOST_SHOWN] for found in members[key][:TEXTS_EACH]]
    )
    return [
        Stratum(
            task, label, len(ids), len(ids) / len(buffer.entries), weight[task, label],
            [texts[found] for found in ids[:TEXTS_EACH] if found in texts],
        )
        for task, label in ordered
        for ids in [members[task, label]]
    ]  # fmt: skip


def _kinds(session: Session, *, model: Model, ids: Sequence[int]) -> dict[int, Kind]:
    names = task_names(session, model=model)
    rows = session.execute(select(Example.id, Example.task_id, Example.label).where(among(Example.id, ids)))
    return {row.id: (names[row.task_id], row.label) for row in rows}


def _texts(session: Session, *, ids: Sequence[int]) -> dict[int, str]:
    rows = session.execute(select(Example.id, Example.content).where(among(Example.id, ids)))
    return {row.id: content_in_words(row.content) for row in rows}
