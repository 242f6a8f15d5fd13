"""What must hold of a tenant's rows at every moment, whatever was asked, killed or lost before."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from sqlalchemy import Row, select, text
from sqlalchemy.orm import Session

from service.artifacts import get_store
from service.models import (
    Alias,
    AliasMove,
    Example,
    Model,
    RepeatScore,
    ReplayEntry,
    Score,
    Task,
    Update,
    UpdateEvent,
    UpdateState,
    Version,
    VersionTask,
)
from service.registry.queries import CHAMPION
from service.replay.queries import read_buffer
from service.replay.quotas import Candidate, priority, stratum
from service.replay.quotas import select as choose
from service.updates.states import ACTIVE, FINISHED, TRANSITIONS

STATES = {str(state) for state in UpdateState}
HELD = UpdateState.AWAITING_APPROVAL
UNNUMBERED = {UpdateState.QUEUED, UpdateState.TRAINING}
# What only the holder of a claim may write. Eval sets are content, whoever made them.
FENCED = (Update, UpdateEvent, Version, VersionTask, ReplayEntry, Score, RepeatScore, Alias, AliasMove)


@dataclass
class Seen:
    """What earlier looks found and later ones may not contradict."""

    fences: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, tuple[object, ...]] = field(default_factory=dict)
    events: dict[str, list[int]] = field(default_factory=dict)


def check(session: Session, *, seen: Seen) -> None:
    """Looks at every model and update of the tenant. Raises AssertionError for the first thing that is wrong."""
    models = session.scalars(select(Model)).all()
    updates = session.scalars(select(Update).order_by(Update.seq)).all()
    versions = session.scalars(select(Version).order_by(Version.number)).all()
    aliases = session.scalars(select(Alias)).all()
    check_versions(models, updates, versions)
    moves = session.scalars(select(AliasMove).order_by(AliasMove.id)).all()
    check_aliases(models, versions, aliases, moves)
    check_promotions(updates, moves)
    check_updates(updates, seen=seen)
    check_events(updates, session.scalars(select(UpdateEvent).order_by(UpdateEvent.id)).all(), seen=seen)
    for model in models:
        check_buffer(session, model=model)


def check_versions(models: Sequence[Model], updates: Sequence[Update], versions: Sequence[Version]) -> None:
    """Numbers have no gaps, an update has one version at most, and each names the other; every artifact is there."""
    numbers = defaultdict(list)
    for version in versions:
        numbers[version.model_id].append(version.number)
        assert version.artifact_sha256 is None or get_store().holds(version.artifact_sha256), version.number
    for model in models:
        assert numbers[model.id] == list(range(model.last_version + 1)), numbers[model.id]
    made = [(version.update_id, version.number) for version in versions if version.update_id is not None]
    assert len({update_id for update_id, _ in made}) == len(made), made
    assert set(made) == {(update.id, update.version) for update in updates if update.version is not None}
    parents = {update.id: update.parent_version for update in updates}
    assert all(version.parent == parents[version.update_id] for version in versions if version.update_id)


def check_aliases(
    models: Sequence[Model], versions: Sequence[Version], aliases: Sequence[Alias], moves: Sequence[AliasMove]
) -> None:
    """Every model has one champion that can be loaded, and replaying the history gives the present aliases."""
    champions = Counter(alias.model_id for alias in aliases if alias.name == CHAMPION)
    assert champions == {model.id: 1 for model in models}
    loadable = {(v.model_id, v.number) for v in versions if v.artifact_removed_at is None}
    replayed: dict[tuple[str, str], tuple[int, int]] = {}
    for move in moves:
        known, _ = replayed.get((move.model_id, move.alias), (None, None))
        assert move.from_version == known, (move.alias, move.from_version, known)
        replayed[move.model_id, move.alias] = (move.to_version, move.id)
    assert replayed == {(a.model_id, a.name): (a.version, a.move_id) for a in aliases}
    assert {(alias.model_id, alias.version) for alias in aliases} <= loadable


def check_promotions(updates: Sequence[Update], moves: Sequence[AliasMove]) -> None:
    """Whatever an update made champion had been compared with the very champion that it took the place of."""
    compared = {update.id: update.compared_with for update in updates}
    for move in moves:
        if move.update_id is not None:
            assert move.from_version == compared[move.update_id], (
                move.from_version,
                compared[move.update_id],
            )


def check_updates(updates: Iterable[Update], *, seen: Seen) -> None:
    """One active update per model, fences and attempts that only rise, ends that stay, cancels that are heard."""
    updates = list(updates)
    active = Counter(update.model_id for update in updates if update.state in ACTIVE)
    assert all(count == 1 for count in active.values()), active
    for update in updates:
        assert (update.lease_expires_at is not None) == (update.state in ACTIVE), update.state
        assert update.fence >= seen.fences.get(update.id, 0)
        assert seen.attempts.get(update.id, 0) <= update.attempts_used <= update.max_attempts
        assert update.version is None or update.state not in UNNUMBERED, (update.state, update.version)
        assert update.version is not None or update.state not in (HELD, "promoted", "rejected"), update.state
        # Nobody holds it, so nobody would hear: it has to be over.
        assert update.cancel_requested_at is None or update.state in ACTIVE | FINISHED, update.state
        # Nothing of the product's own making; a disk may be full.
        assert (update.error or {}).get("code") != "internal_error" or "No space" in update.error["message"]
        end = (update.state, update.version, update.finished_at, update.decided_by, update.error)
        assert update.id not in seen.ends or seen.ends[update.id] == end, (seen.ends[update.id], end)
        seen.fences[update.id], seen.attempts[update.id] = update.fence, update.attempts_used
        if update.state in FINISHED:
            assert update.finished_at is not None
            seen.ends[update.id] = end


def check_events(updates: Iterable[Update], events: Iterable[UpdateEvent], *, seen: Seen) -> None:
    """The events of an update are a path of the transition table that leads to its state, with a fence per claim."""
    lives = defaultdict(list)
    for event in events:
        lives[event.update_id].append(event)
    for update in updates:
        ids = [event.id for event in lives[update.id]]
        earlier = seen.events.get(update.id, [])
        assert ids[: len(earlier)] == earlier, "events were taken away"
        seen.events[update.id] = ids
        path = [UpdateState(event.type) for event in lives[update.id] if event.type in STATES]
        assert path[0] == UpdateState.QUEUED, path
        assert all(after in TRANSITIONS[before] for before, after in pairwise(path)), path
        assert path[-1] == update.state, (path, update.state)
        claims = [(UpdateState.QUEUED, UpdateState.TRAINING), (HELD, UpdateState.EVALUATING)]
        assert sum(pair in claims for pair in pairwise(path)) == update.fence, (path, update.fence)


def check_buffer(session: Session, *, model: Model) -> None:
    """The champion's replay buffer is what its definition says of the rows its lineage learnt."""
    champion = session.scalars(select(Alias).where(Alias.model_id == model.id, Alias.name == CHAMPION)).one()
    lineage = session.scalars(
        select(Version.lineage).where(Version.model_id == model.id, Version.number == champion.version)
    ).one()
    learnt = [
        candidate
        for taught in session.execute(
            select(VersionTask, Task.name)
            .join(Task, Task.id == VersionTask.task_id)
            .where(VersionTask.model_id == model.id, VersionTask.version.in_(lineage))
        )
        for candidate in _admitted(session, model, taught)
    ]
    expected = choose(learnt, int(model.replay["capacity"]))
    buffer = read_buffer(session, model=model, lineage=lineage, cut=model.last_batch)
    assert list(buffer.entries) == expected


def everything_recorded(session: Session) -> dict[str, str]:
    """A digest of each table that the holder of a claim writes, for "nothing has changed"."""
    digest = "SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM {table} t"
    return {
        kind.__tablename__: session.scalar(text(digest.format(table=kind.__tablename__))) for kind in FENCED
    }


def _admitted(session: Session, model: Model, taught: Row[VersionTask, str]) -> list[Candidate]:
    """The rows of one interval that stand to this day: neither erased (no row) nor corrected (superseded)."""
    interval, task = taught
    rows = session.scalars(
        select(Example).where(Example.task_id == interval.task_id, Example.split == "train")
    ).all()
    return [
        Candidate(
            stratum=stratum(model.replay["policy"], task, row.label),
            priority=priority(model.buffer_seed, task, row.content_hash, _weight(model, row)),
            example_id=row.id,
        )
        for row in rows
        if interval.after_batch < row.batch <= interval.up_to_batch and row.superseded_batch is None
    ]


def _weight(model: Model, row: Example) -> float:
    return row.weight if model.replay["policy"] == "weighted" else 1.0
