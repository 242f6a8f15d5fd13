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


@dataclass(frozen=True, slots=True)
class UpdateView:
    """What the page of an update shows."""

    update: UpdateRead
    events: Sequence[UpdateEvent]
    curve: str | None  # the loss as SVG, once a version was made
    trained: Mapping[str, Any]  # what the training took

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
    losses = trained.get("losses")
    return UpdateView(
        update=describe_update(session, update=update),
        events=queries.update_events(session, update_id=update.id),
        curve=loss_curve([(step, loss) for step, loss in losses]) if losses else None,
        trained=trained,
    )


def _statistics(session: Session, *, update: Update) -> dict[str, Any]:
    if update.version is None:
        return {}
    model = get_model(session, model=update.model_id)
    return get_version(session, model=model, version=update.version).statistics
