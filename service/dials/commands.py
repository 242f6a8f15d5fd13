"""Writes of dials: requests, and what their points answered."""

from collections.abc import Mapping

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.config import get_settings
from service.dials.points import CHILD, PARENT, change_interval, score_interval
from service.dials.queries import find_dial
from service.dials.schemas import MOST_POINTS, DialRequest
from service.errors import TooManyRequests, Unprocessable
from service.evaluations.outcomes import Outcomes, mean_score, pack
from service.models import Dial, DialScore, DialState, EvalSet, Model, new_id
from service.queue import nudge_after_commit
from service.registry.queries import get_model
from service.request_context import request_id
from service.security import Principal
from service.updates.blends import sides_of


def request_dial(
    session: Session, *, model: str, version: int, request: DialRequest, principal: Principal
) -> Dial:
    """Asks for the points of a version's dial, and nudges the workers where any is missing.

    Points are added to those of earlier requests; a failed dial is taken up again where it ended. A repeat of what is
    there, or under way, changes nothing. Raises `NotFound`, `Unprocessable`, `Gone` (see `sides_of`) and `TooManyRequests`.
    """
    row = get_model(session, model=model, for_change=True, hold=True)
    child, _ = sides_of(session, model=row, version=version)
    _insert_first(session, model=row, version=child.number, principal=principal)
    dial = find_dial(session, model=row, version=child.number, lock=True)
    assert dial is not None  # noqa: S101  # just made, if it was not there
    betas = sorted({PARENT, CHILD, *dial.betas, *(beta + 0.0 for beta in request.betas)})  # -0.0 is 0.0
    if dial.state == DialState.FAILED or betas != dial.betas:
        _check_queue(session, tenant=row.tenant_id)
        _queue(session, dial=dial, betas=betas)
    return dial


def _insert_first(session: Session, *, model: Model, version: int, principal: Principal) -> None:
    """Stores a dial without points unless the version has one: two first requests at once make one dial."""
    first = insert(Dial).values(
        tenant_id=model.tenant_id, id=new_id("dia"), model_id=model.id, version=version, betas=[], gate=model.gate,
        requested_by=principal.actor, request_id=request_id(), state=DialState.DONE,
        max_attempts=get_settings().max_attempts,
    )  # fmt: skip
    session.execute(first.on_conflict_do_nothing(index_elements=["tenant_id", "model_id", "version"]))


def _queue(session: Session, *, dial: Dial, betas: list[float]) -> None:
    """Puts a dial into the queue, from whoever may be at work on it: what that one has stored stays."""
    if len(betas) > MOST_POINTS:
        raise Unprocessable(
            f"The dial would have {len(betas)} points; it may have {MOST_POINTS} at most.",
            code="too_many_points", param="betas",
        )  # fmt: skip
    dial.betas, dial.state, dial.fence = betas, DialState.QUEUED, dial.fence + 1
    dial.attempts_used, dial.next_attempt_at, dial.error, dial.finished_at = 0, None, None, None
    dial.worker, dial.lease_expires_at = None, None
    session.flush()
    nudge_after_commit(session)


def _check_queue(session: Session, *, tenant: str) -> None:
    limit = get_settings().max_queued_updates_per_tenant
    queued = session.scalar(
        select(func.count()).select_from(Dial).where(Dial.tenant_id == tenant, Dial.state == DialState.QUEUED)
    )
    if (queued or 0) >= limit:
        raise TooManyRequests(
            f"{queued} dials are queued already, the limit is {limit}; wait for some to finish.",
            code="too_many_queued_dials", headers={"Retry-After": "30"},
        )  # fmt: skip


def record_point(
    session: Session,
    *,
    dial: Dial,
    beta: float,
    eval_set: EvalSet,
    outcomes: Outcomes,
    parent: Outcomes | None,
    measures: Mapping[str, float],
    score: float | None = None,
) -> None:
    """Stores what one point answered on one eval set, with its bounds; a second record of the same changes nothing.

    `score` is that of a recorded point, as it was stored; by default the mean.
    """
    confidence = float(dial.gate["confidence"])
    packed = pack(outcomes, np.asarray(eval_set.example_ids, dtype=np.int64))
    change = change_interval(parent, outcomes, confidence=confidence)
    session.execute(
        insert(DialScore)
        .values(
            tenant_id=dial.tenant_id, dial_id=dial.id, beta=beta, eval_set_id=eval_set.id, task_id=eval_set.task_id,
            size=packed.size, score=mean_score(outcomes) if score is None else score, correct=packed.correct,
            predicted=packed.predicted, confidence=packed.confidence, graded=packed.graded, measures=dict(measures),
            interval=list(score_interval(outcomes, confidence=confidence)), change=change and list(change),
        )
        .on_conflict_do_nothing()
    )  # fmt: skip
