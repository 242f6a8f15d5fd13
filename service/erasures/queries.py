"""Reads of erasures: which versions are tainted, what a rebuild would do, where the model stands."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db import among
from service.erasures.schemas import ErasureRead, RebuildPlan, RebuildRead, Receipt, TaintedVersion
from service.errors import NotFound
from service.examples.queries import descendants, eval_sizes, has_fresh
from service.models import Alias, Erasure, Model, Task, Update, Version, VersionTask
from service.registry.queries import get_champion, get_version
from service.updates.commands import learnt_up_to


def get_erasure(session: Session, *, model: Model, erasure: str) -> Erasure:
    """Returns one erasure of the model. Raises `NotFound`."""
    row = session.scalar(select(Erasure).where(Erasure.model_id == model.id, Erasure.id == erasure))
    if row is None:
        raise NotFound(
            f"The model '{model.name}' has no erasure '{erasure}'. GET …/erasures lists them.",
            code="erasure_not_found", param="erasure",
        )  # fmt: skip
    return row


def tainted_versions(session: Session, *, erasure: Erasure) -> list[int]:
    """Returns the versions that learnt from the subject and all that were built on them, to this day."""
    built = descendants(session, model_id=erasure.model_id, versions=erasure.versions)
    return sorted({*erasure.versions, *built})


def versions_tainted_by_any(session: Session, *, model_id: str) -> set[int]:
    """Returns the versions that any erasure of the model has tainted, to this day."""
    learnt = session.scalars(select(Erasure.versions).where(Erasure.model_id == model_id))
    known = sorted({number for versions in learnt for number in versions})
    return {*known, *descendants(session, model_id=model_id, versions=known)}


def describe_erasure(session: Session, *, model: Model, erasure: Erasure) -> ErasureRead:
    """Returns an erasure in its public shape."""
    tainted = tainted_versions(session, erasure=erasure)
    return ErasureRead(
        id=erasure.id, deleted=erasure.deleted, versions=erasure.versions,
        inherited_by=[number for number in tainted if number not in erasure.versions],
        rebuild=plan_rebuild(session, model=model, tainted=tainted),
        rebuild_update=erasure.rebuild_id, retired_at=erasure.retired_at, by=erasure.requested_by,
        created_at=erasure.created_at,
    )  # fmt: skip


def plan_rebuild(session: Session, *, model: Model, tainted: Sequence[int]) -> RebuildPlan | None:
    """Returns what would be learnt anew on which version; None where nothing is to be, or nothing is left.

    The parent is the champion's last clean ancestor whose adapter is still there. What the champion learnt since is
    fresh to it, less the erased rows, so that an ordinary update from there is the whole rebuild.
    """
    champion = get_version(session, model=model, version=get_champion(session, model=model).version)
    dirty = set(tainted) & set(champion.lineage)
    if not dirty:
        return None
    clean = [number for number in champion.lineage if number < min(dirty)]
    parent = session.scalars(
        select(Version)
        .where(
            Version.model_id == model.id, among(Version.number, clean), Version.artifact_removed_at.is_(None)
        )
        .order_by(Version.number.desc())
        .limit(1)
    ).one()  # version 0, the base, is always there
    since = [number for number in champion.lineage if number > parent.number]
    tasks = _learnable(session, model=model, versions=since, parent=parent)
    return RebuildPlan(parent=parent.number, tasks=tasks) if tasks else None


def _learnable(session: Session, *, model: Model, versions: Sequence[int], parent: Version) -> list[str]:
    """The tasks that these versions learnt and that still have rows to learn and to measure with, in their order."""
    tasks = session.scalars(
        select(Task)
        .where(
            Task.model_id == model.id,
            Task.deleted_at.is_(None),
            Task.id.in_(
                select(VersionTask.task_id).where(
                    VersionTask.model_id == model.id, among(VersionTask.version, versions)
                )
            ),
        )
        .order_by(Task.seq)
    ).all()
    sizes = eval_sizes(session, task_ids=[task.id for task in tasks], cut=model.last_batch)
    return [
        task.name
        for task in tasks
        if sizes[task.id]
        and has_fresh(
            session, task_id=task.id, up_to_batch=model.last_batch,
            after_batch=learnt_up_to(session, model=model, lineage=parent.lineage, task=task),
        )
    ]  # fmt: skip


def read_receipt(session: Session, *, model: Model, erasure: Erasure) -> Receipt:
    """Returns where the model stands after the erasure, at this moment."""
    tainted = _tainted(session, model=model, erasure=erasure)
    champion = get_champion(session, model=model).version
    states = session.scalar(
        select(func.count())
        .select_from(Version)
        .where(
            Version.model_id == model.id,
            among(Version.number, [each.version for each in tainted]),
            Version.state_sha256.is_not(None),
        )
    )
    return Receipt(
        erasure=erasure.id, model=model.name, model_id=model.id, subject_digest=erasure.subject_digest,
        rows_deleted=erasure.deleted, erased_at=erasure.created_at, erased_by=erasure.requested_by,
        tainted_versions=tainted, strategy_states_left=states or 0, rebuild=_rebuild(session, erasure=erasure),
        champion=champion, champion_is_clean=champion not in [each.version for each in tainted],
        complete=not any(each.aliases or each.adapter_sha256 for each in tainted),
        issued_at=session.scalars(select(func.now())).one(),
    )  # fmt: skip


def _tainted(session: Session, *, model: Model, erasure: Erasure) -> list[TaintedVersion]:
    numbers = tainted_versions(session, erasure=erasure)
    versions = session.scalars(
        select(Version)
        .where(Version.model_id == model.id, among(Version.number, numbers))
        .order_by(Version.number)
    ).all()
    pointing = session.execute(
        select(Alias.version, Alias.name)
        .where(Alias.model_id == model.id, among(Alias.version, numbers))
        .order_by(Alias.name)
    ).all()
    return [
        TaintedVersion(
            version=version.number, trained_on=version.number in erasure.versions,
            aliases=[name for number, name in pointing if number == version.number],
            adapter_sha256=version.artifact_sha256, adapter_removed_at=version.artifact_removed_at,
        )
        for version in versions
    ]  # fmt: skip


def _rebuild(session: Session, *, erasure: Erasure) -> RebuildRead | None:
    if erasure.rebuild_id is None:
        return None
    update = session.scalars(select(Update).where(Update.id == erasure.rebuild_id)).one()
    return RebuildRead(
        update=update.id, status=update.state, version=update.version, parent=update.parent_version
    )
