"""Reads of updates."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import BigInteger, and_, cast, exists, select, text
from sqlalchemy.orm import Session

from service.errors import NotFound
from service.models import IMPORT, Model, Task, Update, UpdateEvent, UpdateState
from service.registry.queries import task_names
from service.updates.schemas import EventRead, Progress, UpdateRead
from service.updates.states import BEFORE_VERSION, FINISHED

Watched = tuple[str, str]
"""A tenant and the id of an update of its."""

UPLOAD_NEEDED = and_(Update.strategy == IMPORT, Update.state.in_(BEFORE_VERSION), Update.version.is_(None))
"""Of imports that may still read the tar they were asked for with; one that is scored again has a version of its own."""
UPLOAD_SHA256 = Update.parameters["sha256"].astext
UPLOAD_BYTES = cast(Update.parameters["bytes"].astext, BigInteger)

EVENTS_AT_ONCE = 500
# Each update's events by index, past the last one known; one row without an event where there is none.
NEWS = text("""
    SELECT w.tenant_id, w.id, u.state, u.progress, e.id AS event_id, e.type, e.data, e.at
    FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]), CAST(:afters AS bigint[])) AS w (tenant_id, id, after)
    JOIN updates u ON u.tenant_id = w.tenant_id AND u.id = w.id
    LEFT JOIN LATERAL (
        SELECT * FROM update_events
        WHERE tenant_id = w.tenant_id AND update_id = w.id AND id > w.after ORDER BY id LIMIT :most
    ) e ON true
    ORDER BY e.id
""")


@dataclass(slots=True)
class News:
    """How an update stands, and its events past one that was known."""

    finished: bool
    progress: Progress | None
    events: list[EventRead] = field(default_factory=list)

    @property
    def more(self) -> bool:
        """Whether later events were left for the next read."""
        return len(self.events) == EVENTS_AT_ONCE


def get_update(session: Session, *, update_id: str, lock: bool = False) -> Update:
    """Returns the tenant's update of that id. Raises `NotFound`."""
    statement = select(Update).where(Update.id == update_id)
    if lock:
        # What was read before the lock may be old by now.
        statement = statement.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(statement)
    if row is None:
        raise NotFound(f"No update '{update_id}'.", code="update_not_found", param="update")
    return row


def describe_update(session: Session, *, update: Update) -> UpdateRead:
    """Returns an update in its public shape."""
    model = session.get_one(Model, {"tenant_id": update.tenant_id, "id": update.model_id})
    names = task_names(session, model=model)
    return update_read(update, model=model, names=names)


def update_read(update: Update, *, model: Model, names: dict[str, str]) -> UpdateRead:
    """Returns an update in its public shape, given the names of its model's tasks."""
    return UpdateRead.model_validate(
        {
            **{name: getattr(update, name) for name in (
                "id", "training", "replay", "relearn", "promotion", "warnings", "parent_version", "version", "compared_with",
                "verdict", "decided_by", "progress", "max_attempts", "next_attempt_at", "error", "requested_by", "request_id", "created_at",
                "started_at", "finished_at")},
            "model": model.name,
            "status": update.state,
            "tasks": [names.get(task_id, task_id) for task_id in update.task_ids],
            "strategy": {"name": update.strategy, "parameters": update.parameters},
            "parent": update.parent if update.parent == "champion" else int(update.parent),
            "metadata": update.user_metadata,
            "data_cut": update.cut,
            "attempt": _attempt(update),
            "cancel_requested": update.cancel_requested_at is not None,
        }
    )  # fmt: skip


def _attempt(update: Update) -> int:
    """The attempt an update is in, or ended in; one that failed for good has no next."""
    begun = update.attempts_used if update.state == UpdateState.FAILED else update.attempts_used + 1
    return min(begun, update.max_attempts)


def get_update_tasks(session: Session, *, update: Update) -> list[Task]:
    """Returns the tasks an update learns, deleted ones left out."""
    return list(
        session.scalars(
            select(Task).where(Task.id.in_(update.task_ids), Task.deleted_at.is_(None)).order_by(Task.name)
        )
    )


def get_news(session: Session, *, after: Mapping[Watched, int]) -> dict[Watched, News]:
    """Returns, in one query, what is new of each update past the event id given; none of one that is there no more.

    Nothing is missed between two reads: whoever records an event holds the update's row from before the event has an id
    until it is committed, so that an update's events appear in the order of their ids.
    """
    given = {
        "tenants": [tenant for tenant, _ in after], "ids": [update_id for _, update_id in after],
        "afters": list(after.values()), "most": EVENTS_AT_ONCE,
    }  # fmt: skip
    found: dict[Watched, News] = {}
    for row in session.execute(NEWS, given):
        progress = Progress.model_validate(row.progress) if row.progress is not None else None
        news = found.setdefault((row.tenant_id, row.id), News(row.state in FINISHED, progress))
        if row.event_id is not None:
            news.events.append(EventRead(id=row.event_id, type=row.type, data=row.data, at=row.at))
    return found


def has_ended(session: Session, *, update: Update, after: int) -> bool:
    """Says whether an update is finished and no event of it comes past the one of that id."""
    later = exists().where(UpdateEvent.update_id == update.id, UpdateEvent.id > after)
    return update.state in FINISHED and not session.scalar(select(later))
