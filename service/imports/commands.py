"""Requests for imports: updates whose version was trained elsewhere."""

from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from service.artifacts import get_store
from service.audit.commands import record
from service.config import get_settings
from service.errors import QuotaExceeded, Unavailable, Unprocessable
from service.examples.queries import count_learnable, has_eval, visible_labels
from service.imports.checks import Contents, Rules, check_upload, require_labels_of
from service.imports.schemas import ImportQuery
from service.imports.taints import require_untainted
from service.models import IMPORT, AuditAction, Model, Task, Update, UpdateState, Version, new_id
from service.registry.disposal import hold_artifacts
from service.registry.queries import get_champion, get_model
from service.registry.schemas import AdapterSpec
from service.request_context import request_id
from service.security import Principal, Scope
from service.tasks.queries import get_tasks
from service.tracing import current_traceparent
from service.updates.commands import check_queue, gate_warnings, queue_update, starting_version
from service.updates.queries import UPLOAD_BYTES, UPLOAD_NEEDED
from service.updates.schemas import ReplayRequest

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('imports:' || :tenant, 0))"
SHOWN_LABELS = 10


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that was checked and stored: what it holds, under which hash, and how many bytes it has."""

    contents: Contents
    sha256: str
    size: int


def may_import(session: Session, *, model: str, query: ImportQuery, size: int, principal: Principal) -> Rules:
    """Refuses what no tar of so many bytes could mend, before it is taken in or stored; returns what it must be like.

    Raises what `request_import` does.
    """
    if query.promotion == "always":
        principal.require(Scope.DEPLOY)
    row = get_model(session, model=model, for_change=True)
    check_queue(session, tenant=row.tenant_id)
    _check_waiting(session, tenant=row.tenant_id, added=size)
    _claimed_tasks(session, model=row, query=query)
    return _rules(row, parent=starting_version(session, model=row, parent=query.parent))


def _rules(model: Model, *, parent: Version) -> Rules:
    """What an adapter must be like to become a version of the model, a child of `parent`."""
    settings, adapter = get_settings(), AdapterSpec.model_validate(model.adapter)
    base = settings.catalogue.get(model.base_model)
    pinned = base.sha256 if base is not None and base.gguf is None else None  # a GGUF's pin is another hash
    return Rules(
        task_type=model.task_type, kind=adapter.kind, max_rank=adapter.max_rank,
        target_modules=adapter.target_modules, base_model=model.base_model, base_sha256=pinned,
        max_labels=settings.max_labels_per_model, max_label_length=settings.max_label_length,
        parent=parent.number, parent_labels=tuple(parent.labels),
    )  # fmt: skip


def store_upload(file: BinaryIO, *, rules: Rules) -> Upload:
    """Checks a tar and stores it as it is; no transaction should be open meanwhile.

    It goes with the end of the last update that needs it; where none comes to need it, the sweeper of orphans takes it away.
    Raises `Unprocessable` and `StoreUnavailable`.
    """
    contents = check_upload(file, rules=rules)
    size = file.seek(0, 2)
    return Upload(contents, sha256=get_store().put_tar(file), size=size)


def request_import(
    session: Session, *, model: str, query: ImportQuery, upload: Upload, principal: Principal
) -> Update:
    """Stores the request for a stored upload to become a version, and nudges the workers.

    The cut is that of now. Raises `NotFound` for an unknown model or task; `Unprocessable` for a parent that does not exist or
    whose labels the upload's do not begin with, and a task without eval rows; `Conflict` for an adapter that is known to carry
    erased rows; `TooManyRequests` and `QuotaExceeded`; `Unavailable` where the upload was deleted with another's of the same bytes.
    """
    _require_stored(session, upload)
    row = get_model(session, model=model, for_change=True, hold=True)
    check_queue(session, tenant=row.tenant_id)
    session.execute(
        text(LOCK), {"tenant": row.tenant_id}
    )  # until the commit, so that two together cannot pass it
    _check_waiting(session, tenant=row.tenant_id, added=upload.size)
    tasks = _claimed_tasks(session, model=row, query=query, hold=True)
    parent = starting_version(session, model=row, parent=query.parent)
    contents, cut = upload.contents, row.last_batch
    require_labels_of(parent.number, known=parent.labels, labels=contents.labels)
    require_untainted(session, model_id=row.id, sha256=upload.sha256, origin_update=contents.origin_update)
    ids = [task.id for task in tasks]
    claimed = count_learnable(session, task_ids=ids, cut=cut) if query.rows == "learnt" else 0
    update = Update(
        tenant_id=row.tenant_id, id=new_id("upd"), model_id=row.id, task_ids=ids, strategy=IMPORT,
        parameters={
            "sha256": upload.sha256, "bytes": upload.size, "rows": query.rows, "claimed_rows": claimed,
            **({"origin_update": contents.origin_update} if contents.origin_update else {}),
        },
        training={"max_length": query.max_length or contents.max_length},
        replay=ReplayRequest(boost="none").model_dump(), parent=str(query.parent), relearn=False,
        promotion=query.promotion, user_metadata=query.kept_metadata, cut=cut,
        warnings=_warnings(session, model=row, parent=parent, tasks=tasks, contents=contents),
        requested_by=principal.actor, request_id=request_id(), traceparent=current_traceparent(),
        state=UpdateState.QUEUED, max_attempts=get_settings().max_attempts,
    )  # fmt: skip
    queue_update(session, update=update)
    record(
        session, tenant=row.tenant_id, actor=principal.actor, action=AuditAction.ADAPTER_IMPORTED, target=update.id,
        model=row.id, sha256=upload.sha256, bytes=upload.size, tasks=[task.name for task in tasks], rows=query.rows,
    )  # fmt: skip
    return update


def _require_stored(session: Session, upload: Upload) -> None:
    """Keeps the upload until the request is committed; from then on the update's row does."""
    if not hold_artifacts(session, [upload.sha256]):
        raise Unavailable(
            "The last adapter of the same content was deleted while yours was taken in, and yours with it. Send it again.",
            code="upload_lost", headers={"Retry-After": "1"},
        )  # fmt: skip


def _claimed_tasks(session: Session, *, model: Model, query: ImportQuery, hold: bool = False) -> list[Task]:
    tasks = list(get_tasks(session, model=model, names=list(dict.fromkeys(query.tasks)), hold=hold))
    for task in tasks:
        if not has_eval(session, task_id=task.id, cut=model.last_batch):
            raise Unprocessable(
                f"The task '{task.name}' has no eval data, so what the adapter knows of it could not be measured. POST examples "
                'with "split": "eval" that it was not trained on.',
                code="no_eval_data", param="tasks",
            )  # fmt: skip
    return tasks


def _check_waiting(session: Session, *, tenant: str, added: int) -> None:
    """Raises `QuotaExceeded` where more would wait to be imported than a tenant may have waiting."""
    most = get_settings().max_waiting_import_bytes_per_tenant
    waiting = session.scalar(
        select(func.coalesce(func.sum(UPLOAD_BYTES), 0)).where(Update.tenant_id == tenant, UPLOAD_NEEDED)
    )
    if (waiting or 0) + added > most:
        raise QuotaExceeded(
            f"{waiting} bytes of adapters wait to be imported; with these {added} it would be more than the {most} a tenant may "
            "have waiting. Wait for some imports to end, or cancel them.",
            code="too_many_waiting_imports", headers={"Retry-After": "30"},
        )  # fmt: skip


def _warnings(
    session: Session, *, model: Model, parent: Version, tasks: list[Task], contents: Contents
) -> list[str]:
    warnings = gate_warnings(session, model=model, parent=parent, cut=model.last_batch)
    champion = get_champion(session, model=model).version
    if champion != parent.number:
        warnings.append(
            f"the champion is version {champion} and not the adapter's parent, version {parent.number}: unless that changes, a "
            "person decides on it"
        )
    if model.task_type == "text-classification":
        warnings += _label_warnings(session, tasks=tasks, cut=model.last_batch, labels=set(contents.labels))
    return warnings


def _label_warnings(session: Session, *, tasks: list[Task], cut: int, labels: set[str]) -> list[str]:
    warnings, seen = [], set[str]()
    for task in tasks:
        asked = visible_labels(session, task_id=task.id, split="eval", cut=cut)
        seen |= asked | visible_labels(session, task_id=task.id, split="train", cut=cut)
        warnings += [
            f"task '{task.name}': the adapter has no label '{label}', so every eval example with it will count as wrong"
            for label in sorted(asked - labels)[:SHOWN_LABELS]
        ]
    if unused := sorted(labels - seen):
        more = ", …" if len(unused) > SHOWN_LABELS else ""
        warnings.append(
            f"no example of these tasks has the label {', '.join(map(repr, unused[:SHOWN_LABELS]))}{more}: the version keeps it, "
            "and nothing measures it"
        )
    return warnings
