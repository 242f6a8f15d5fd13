"""Rows and versions for tests of what is stored."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select

from service.artifacts import get_store
from service.db import session_scope
from service.models import Example, Model, Task, Version, VersionTask
from service.registry.commands import promote
from service.replay.commands import admit_examples


def rows(task: str, count: int, *, split: str = "train") -> list[dict[str, str]]:
    return [
        {"id": f"{task}-{split}-{at}", "text": f"{task} {split} {at}", "label": "a", "split": split}
        for at in range(count)
    ]


def version(folder: Path, *, number: int, lineage: Sequence[int], learns: str, champion: bool = True) -> str:
    """Makes a version with an artifact that has learnt every train row of a task; returns the artifact's hash."""
    folder = folder / str(number)
    folder.mkdir()
    (folder / "version.json").write_text(f'{{"number": {number}, "in": "{folder}"}}')
    sha256, size = get_store().put_folder(folder)
    with session_scope(tenant="acme", role="worker") as session:
        model, task = session.query(Model).one(), session.query(Task).filter_by(name=learns).one()
        session.add(
            Version(
                tenant_id="acme", model_id=model.id, number=number, parent=lineage[-2], lineage=list(lineage),
                parameters={}, training={}, cut=model.last_batch, labels=["a"], statistics={}, provenance={},
                artifact_sha256=sha256, artifact_bytes=size,
            )
        )  # fmt: skip
        model.last_version = number
        session.flush()
        learnt = session.scalars(
            select(Example).where(Example.task_id == task.id, Example.split == "train")
        ).all()
        admitted = admit_examples(session, model=model, version=number, task=learns, examples=learnt)
        session.add(
            VersionTask(
                tenant_id="acme", model_id=model.id, version=number, task_id=task.id, after_batch=0,
                up_to_batch=model.last_batch, rows=admitted,
            )
        )  # fmt: skip
        if champion:
            promote(
                session,
                model=model,
                version=number,
                kind="promoted",
                actor="gate",
                reason=None,
                update_id=None,
            )
    return sha256
