"""What a blend is made of: two versions' folders, and what the one that is blended had learnt."""

from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db import session_scope
from service.models import BLEND, Model, Task, Update, Version, VersionTask
from service.registry.queries import get_version, require_artifact
from service.tracing import traced
from service.updates.leases import Claim
from workers.preparation import (
    Plan,
    TaskSlice,
    adapter_settings,
    base_folder,
    settle_parent,
    training_settings,
    version_folder,
)
from workers.training.contract import TrainRequest


@traced("prepare")
def prepare_blend(claim: Claim, *, work: Path) -> Plan:
    """Fetches both versions into `work`, and returns the plan.

    The blend is the parent's child, as the version is, and learns the very slices that the version learnt: the same
    rows are fresh no more, and the same examples are admitted to replay, for their priorities stand on content alone.
    It reads no row, so none can be erased under it.

    Raises `BaseModelMissing`, `ArtifactDamaged`, and `Conflict` for a version whose adapter is gone.
    """
    number = settle_parent(claim)
    with session_scope(tenant=claim.tenant, role="worker") as session:
        model = session.get_one(Model, {"tenant_id": claim.tenant, "id": claim.model_id})
        update = session.get_one(Update, {"tenant_id": claim.tenant, "id": claim.update_id})
        parent = get_version(session, model=model, version=number)
        child = get_version(session, model=model, version=int(update.parameters["of"]))
        for side in (parent, child):
            require_artifact(model, side)
        slices = _learnt_by(session, model=model, version=child)
    lineage = {
        "model": model.name,
        "update": update.id,
        "parent": parent.number,
        "data_cut": update.cut,
        "tasks": {piece.name: {"after_batch": piece.after, "up_to_batch": piece.up_to} for piece in slices},
        "replay": {},
        "blend": {
            "of": child.number,
            "sha256": child.artifact_sha256,
            "parent_sha256": parent.artifact_sha256,
        },
    }
    request = blend_request(
        model, parent=parent, child=child, parameters=update.parameters, lineage=lineage, work=work,
        output=work / "version",
    )  # fmt: skip
    return Plan(
        model=model, update=update, parent=parent, slices=slices, trained_on=array("q"), request=request
    )


def _learnt_by(session: Session, *, model: Model, version: Version) -> tuple[TaskSlice, ...]:
    rows = session.execute(
        select(VersionTask.task_id, Task.name, VersionTask.after_batch, VersionTask.up_to_batch)
        .join(Task, Task.id == VersionTask.task_id)
        .where(
            VersionTask.model_id == model.id,
            VersionTask.version == version.number,
            Task.deleted_at.is_(None),
        )
        .order_by(Task.name)
    )
    return tuple(TaskSlice(task_id, name, after, up_to) for task_id, name, after, up_to in rows)


def blend_request(
    model: Model,
    *,
    parent: Version,
    child: Version,
    parameters: Mapping[str, Any],
    lineage: Mapping[str, Any],
    work: Path,
    output: Path,
) -> TrainRequest:
    """Returns what the training child needs to write the blend of two versions to `output`."""
    return TrainRequest(
        task_type=model.task_type,
        base=base_folder(model.base_model),
        adapter=adapter_settings(model),
        strategy=BLEND,
        parameters=dict(parameters),
        settings=replace(training_settings(child.training), devices=1),  # a sum, whatever the training took
        parent=str(version_folder(parent, work=work)) if parent.artifact_sha256 else None,
        child=str(version_folder(child, work=work)),
        labels=tuple(child.labels),
        fresh="",
        output=str(output),
        checkpoints=str(work / "no-checkpoints"),
        lineage=lineage,
    )
