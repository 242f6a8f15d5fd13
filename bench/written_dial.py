"""The dial of a version that was written without training: asked for over the API, its points stored as a worker stores them."""

import numpy as np

from bench.client import Client
from service.db import EVERY_TENANT, session_scope
from service.dials.commands import record_point
from service.dials.leases import DIALS
from service.evaluations.outcomes import Flags, Outcomes
from service.evaluations.queries import load_outcomes, newest_eval_sets
from service.leased_rows import RowClaim
from service.models import Model

LEASE_SECONDS = 600.0


def write_dial(client: Client, *, database_url: str, tenant: str, model: str, version: int) -> None:
    """Ask for the dial of a version that is scored, as its parent is, and score its usual points.

    Between the ends every answer turns from the parent's to the version's at a β of its own. No other dial may wait.
    """
    client.post(f"/models/{model}/versions/{version}/dial")
    with session_scope(tenant=EVERY_TENANT, role="worker", database_url=database_url) as session:
        claim = DIALS.claim(session, worker="bench", lease_seconds=LEASE_SECONDS)
    if claim is None:
        raise RuntimeError("the dial that was asked for does not wait for a worker")
    score_points(claim, database_url=database_url, tenant=tenant, version=version)


def score_points(claim: RowClaim, *, database_url: str, tenant: str, version: int) -> None:
    """Store what every point answered on the newest eval set of each task, and end the dial."""
    random = np.random.default_rng(version)
    with session_scope(tenant=tenant, role="worker", database_url=database_url) as session:
        model = session.get_one(Model, {"tenant_id": tenant, "id": claim.model_id})
        dial = DIALS.hold(session, claim=claim)
        if dial is None:
            raise RuntimeError("the dial is another worker's")
        eval_sets = newest_eval_sets(session, model=model, version=version)
        dial.eval_set_ids = [eval_set.id for eval_set in eval_sets]
        tasks = [eval_set.task_id for eval_set in eval_sets]
        stored = load_outcomes(session, model=model, versions={version - 1, version}, task_ids=tasks)
        for eval_set in eval_sets:
            parent, child = (stored[number, eval_set.task_id] for number in (version - 1, version))
            turns = random.random(len(child))
            for beta in dial.betas:
                record_point(
                    session, dial=dial, beta=beta, eval_set=eval_set, outcomes=between(parent, child, turns < beta),
                    parent=parent, measures={},
                )  # fmt: skip
        DIALS.finish(session, claim=claim)


def between(parent: Outcomes, child: Outcomes, turned: Flags) -> Outcomes:
    """The version's answers where they have turned, else its parent's. Raises ValueError unless both are of the same examples."""
    if not np.array_equal(parent.example_ids, child.example_ids):
        raise ValueError("the version and its parent answered other examples")
    return Outcomes(
        example_ids=child.example_ids,
        correct=np.where(turned, child.correct, parent.correct),
        predicted=np.where(turned, child.predicted, parent.predicted),
        confidence=np.where(turned, child.confidence, parent.confidence),
    )
