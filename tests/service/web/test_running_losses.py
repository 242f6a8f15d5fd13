"""How much room the curve of the loss leaves while an update goes: that of the training it tells of."""

from typing import Any

import pytest
from sqlalchemy import update

from service.db import session_scope
from service.models import Update, UpdateState
from service.updates.queries import get_update
from service.web.charts.lines import loss_curve
from service.web.views.progress import view_update
from tests.scenes import World

LOSSES = [[1, 0.9], [2, 0.5], [3, 0.25]]


@pytest.mark.parametrize(
    ("progress", "room"),
    [
        ({"phase": "training", "total_steps": 9}, 9),
        ({"phase": "training", "total_steps": 27, "repeat": 2, "repeats": 3}, 9),
        ({"phase": "evaluating", "total_steps": 20_000}, 0),
    ],
)
def test_the_curve_has_room_for_the_steps_of_its_training(
    world: World, progress: dict[str, Any], room: int
) -> None:
    world.model()
    world.task("one", train=2, held=2)
    queued = world.request("one")["id"]
    with session_scope(tenant="acme", role="worker") as session:
        said = {"step": 3, "loss": 0.25, "losses": LOSSES, **progress}
        session.execute(
            update(Update).where(Update.id == queued).values(progress=said, state=UpdateState.TRAINING)
        )
        view = view_update(session, update=get_update(session, update_id=queued))
    assert view.curve == loss_curve([(step, loss) for step, loss in LOSSES], total_steps=room)
