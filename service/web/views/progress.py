"""One update as it stands: its state, how far it is, what happened so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.models import Update, UpdateEvent, UpdateState
from service.registry.queries import get_model, get_version
from service.updates.queries import describe_update
from service.updates.schemas import UpdateRead
from service.updates.states import FINISHED
from service.web import queries
from service.web.charts.lines import loss_curve

EVENTS = ("id", "type", "at", "data")
LOSSES = ("step", "loss")
Loss = tuple[int, float]
"""A step, and the mean loss of the steps up to it."""


@dataclass(frozen=True, slots=True)
class UpdateView:
    """What the page of an update shows."""

    update: UpdateRead
    events: Sequence[UpdateEvent]
    losses: Sequence[Loss]  # of the training as it goes, then of all of it
    curve: str | None  # the same as SVG
    trained: Mapping[str, Any]  # what the training took, once a version was made

    @property
    def is_finished(self) -> bool:
        """Nothing will change any more."""
        return self.update.status in FINISHED

    @property
    def is_held(self) -> bool:
        """A person is to decide."""
        return self.update.status == UpdateState.AWAITING_APPROVAL


def view_update(session: Session, *, update: Update) -> UpdateView:
    """Returns what the page shows."""
    trained = _statistics(session, update=update)
    losses = _losses(trained or update.progress or {})
    return UpdateView(
        update=describe_update(session, update=update),
        events=queries.update_events(session, update_id=update.id),
        losses=losses, trained=trained,
        curve=loss_curve(losses, total_steps=_steps_to_come(update.progress or {})) if losses else None,
    )  # fmt: skip


def _losses(told: Mapping[str, Any]) -> list[Loss]:
    """The curve that a version's statistics end with, or that the progress of an update brings along."""
    return [(step, loss) for step, loss in told.get("losses", [])]


def _steps_to_come(progress: Mapping[str, Any]) -> int:
    """The steps of the training that is told of; in other phases it is over, and what is counted is something else."""
    if progress.get("phase") != "training":
        return 0
    return int(progress.get("total_steps", 0)) // int(progress.get("repeats") or 1)


def _statistics(session: Session, *, update: Update) -> dict[str, Any]:
    if update.version is None:
        return {}
    model = get_model(session, model=update.model_id)
    return get_version(session, model=model, version=update.version).statistics
