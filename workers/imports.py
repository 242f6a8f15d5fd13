"""What an import is made of: the uploaded folder, and what it claims to have learnt."""

import json
from array import array
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from service.artifacts import ArtifactDamaged, get_store
from service.db import session_scope
from service.errors import ServiceError
from service.examples.queries import learnable_ids
from service.imports.archive import LABELS, unpack_tar
from service.imports.checks import require_labels_of
from service.imports.taints import require_untainted
from service.models import IMPORT, Model, Task, Update, Version
from service.registry.queries import get_version, require_artifact
from service.tracing import traced
from service.updates.commands import learnt_up_to
from service.updates.leases import Claim
from service.updates.queries import get_update_tasks
from workers.preparation import Plan, TaskSlice, adapter_settings, base_folder, settle_parent
from workers.training.contract import TrainingSettings, TrainRequest


class UploadLost(ServiceError):
    """The uploaded tar is no longer in the artifact store, or not what it was."""

    status, code = 500, "upload_lost"


class ClaimOutdated(ServiceError):
    """What the adapter is said to have learnt is not there any more: nobody could say later what it has seen."""

    status, code = 409, "claim_outdated"


@traced("prepare")
def prepare_import(claim: Claim, *, work: Path) -> Plan:
    """Unpacks the upload into `work`, and returns the plan.

    With `rows: learnt` the version counts as having learnt every train row of its tasks that the cut shows, as if it had
    relearnt them; these rows must all be there still. With `rows: fresh` it has learnt the tasks and none of their rows.

    Raises `BaseModelMissing`, `UploadLost`, `ClaimOutdated`, `Conflict` for a parent whose adapter is gone, and `Unprocessable` for
    one whose labels the upload's do not begin with.
    """
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = settle_parent(claim)
    with session_scope(tenant=claim.tenant, role="worker") as session:
        model = session.get_one(Model, {"tenant_id": claim.tenant, "id": claim.model_id})
        update = session.get_one(Update, {"tenant_id": claim.tenant, "id": claim.update_id})
        parent = get_version(session, model=model, version=number)
        require_artifact(model, parent)
        tasks = get_update_tasks(session, update=update)
        trained_on = _claimed_rows(session, update=update, tasks=tasks)
        slices = tuple(
            _slice(session, model=model, update=update, parent=parent, task=task) for task in tasks
        )
    folder = unpacked_upload(update.parameters["sha256"], work=work)
    labels = _labels(folder)
    require_labels_of(parent.number, known=parent.labels, labels=labels)
    request = TrainRequest(
        task_type=model.task_type, base=base_folder(model.base_model), adapter=adapter_settings(model), strategy=IMPORT,
        settings=TrainingSettings(**update.training), upload=str(folder), labels=labels, fresh="",
        output=str(work / "version"), checkpoints=str(work / "no-checkpoints"),
        lineage=_lineage(model, update, parent, slices),
    )  # fmt: skip
    return Plan(
        model=model, update=update, parent=parent, slices=slices, trained_on=trained_on, request=request
    )


def _claimed_rows(session: Session, *, update: Update, tasks: list[Task]) -> "array[int]":
    """The ids of the rows that it counts as trained on; recording fails where one of them is erased meanwhile."""
    if len(tasks) < len(update.task_ids):
        raise ClaimOutdated(
            "A task that the adapter is said to have learnt was deleted meanwhile; import it again without that task."
        )
    if update.parameters["rows"] == "fresh":
        return array("q")
    ids = array("q", learnable_ids(session, task_ids=update.task_ids, cut=update.cut))
    if (gone := int(update.parameters["claimed_rows"]) - len(ids)) > 0:
        raise ClaimOutdated(
            f"{gone} of the rows that the adapter is said to have learnt were erased since it was uploaded. It may still know them: "
            "train it again without them, or import it again and mind that no later erasure can find them in it."
        )
    return ids


def require_still_untainted(session: Session, *, update: Update) -> None:
    """Asked when it is recorded, with erasures held: raises `Conflict` where the adapter is known to carry erased rows."""
    require_untainted(
        session, model_id=update.model_id, sha256=update.parameters["sha256"],
        origin_update=update.parameters.get("origin_update"),
    )  # fmt: skip


def _slice(session: Session, *, model: Model, update: Update, parent: Version, task: Task) -> TaskSlice:
    if update.parameters["rows"] == "learnt":
        return TaskSlice(task_id=task.id, name=task.name, after=0, up_to=update.cut)
    known = learnt_up_to(session, model=model, lineage=parent.lineage, task=task)
    return TaskSlice(task_id=task.id, name=task.name, after=known, up_to=known)


def unpacked_upload(sha256: str, *, work: Path) -> Path:
    """Returns the folder of the uploaded files within `work`, checked against their hash. Raises `UploadLost`."""
    target = work / "upload"
    if target.exists():
        return target
    try:
        stored = get_store().open_verified(sha256)
    except ArtifactDamaged as error:
        raise UploadLost(f"The uploaded adapter cannot be read any more; import it again. {error}") from error
    with stored:
        unpack_tar(stored, target)
    return target


def _labels(folder: Path) -> tuple[str, ...]:
    file = folder / LABELS
    return tuple(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else ()


def _lineage(model: Model, update: Update, parent: Version, slices: tuple[TaskSlice, ...]) -> dict[str, Any]:
    return {
        "model": model.name,
        "update": update.id,
        "parent": parent.number,
        "data_cut": update.cut,
        "tasks": {piece.name: {"after_batch": piece.after, "up_to_batch": piece.up_to} for piece in slices},
        "replay": {},
        "import": {
            "sha256": update.parameters["sha256"],
            "bytes": update.parameters["bytes"],
            "rows": update.parameters["rows"],
            "by": update.requested_by,
            "at": update.created_at.isoformat(),
        },
    }
