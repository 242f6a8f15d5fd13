"""What an update trains on: parent, rows, labels, replay buffer; written to files for the training child."""

import importlib.util
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from structlog import get_logger

from service.artifacts import ArtifactDamaged, get_store
from service.config import BaseCheckpoint, get_settings
from service.db import among, session_scope
from service.errors import ServiceError
from service.examples.queries import StoredExample, fresh_rows, rows_by_id
from service.models import Model, Task, Update, Version, VersionTask
from service.registry.queries import get_champion, get_version, require_artifact
from service.replay.boosts import flip_boost
from service.replay.queries import read_buffer
from service.signs_of_life import show_life, show_life_meanwhile
from service.tracing import traced
from service.updates.catalogue import strategies
from service.updates.commands import learnt_up_to
from service.updates.leases import Claim, set_parent
from service.updates.queries import get_update_tasks
from workers.lease import LeaseLost
from workers.training.contract import AdapterSettings, BaseFolder, TrainingSettings, TrainRequest
from workers.training.errors import reason_of
from workers.workspace import CHECKPOINTS, work_root

log = get_logger(__name__)


class NothingToLearn(ServiceError):
    """The update's tasks hold no row, within its cut, that the parent's lineage has not learnt."""

    status, code = 422, "nothing_to_learn"


class BaseModelMissing(ServiceError):
    """The base model is in the catalogue, but not on this worker's disk."""

    status, code = 500, "base_model_missing"


class StateErased(Exception):
    """The parent's state was dropped by an erasure while the update was prepared: it has to be prepared again."""


class TrainedOnErased(Exception):
    """An example was erased while a candidate was trained on it: the candidate must not live."""


@dataclass(frozen=True, slots=True)
class TaskSlice:
    """The rows of one task that an update learns: the visible train rows of batches in (`after`, `up_to`]."""

    task_id: str
    name: str
    after: int
    up_to: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything fixed before training starts."""

    model: Model
    update: Update
    parent: Version
    slices: tuple[TaskSlice, ...]  # what the version will have learnt, and its descendants may rehearse
    trained_on: "array[int]"  # ids of the fresh and the replayed rows, each once
    request: TrainRequest


@traced("prepare")
def prepare_update(claim: Claim, *, work: Path) -> Plan:
    """Resolves the parent, writes the rows to train on into `work`, and returns the plan.

    Raises `NothingToLearn`, `BaseModelMissing`, `ArtifactDamaged`, and `Conflict` for a parent whose adapter is gone.
    """
    number = settle_parent(claim)
    with session_scope(tenant=claim.tenant, role="worker") as session:
        model = session.get_one(Model, {"tenant_id": claim.tenant, "id": claim.model_id})
        update = session.get_one(Update, {"tenant_id": claim.tenant, "id": claim.update_id})
    return plan_update(model, update, parent_version=number, work=work)


def plan_update(model: Model, update: Update, *, parent_version: int, work: Path) -> Plan:
    """Writes the rows that an update trains on from this parent into `work`, and returns the plan; raises as above.

    The update need not be stored, nor a new one: within its cut, the rows of a past one are those it trained on that are still there.
    """
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    trained_on = array("q")
    with session_scope(tenant=model.tenant_id, role="worker") as session:
        parent = get_version(session, model=model, version=parent_version)
        require_artifact(
            model, parent
        )  # without it, training would start from the base and nobody would know
        slices = _slices(session, model=model, update=update, parent=parent)
        labels: set[str] = set()
        rows = _fresh(session, model=model, update=update, parent=parent, slices=slices)
        fresh = write_rows(
            work / "fresh.ndjson", rows, names=_names(session, model), labels=labels, ids=trained_on
        )
        if fresh == 0:
            raise NothingToLearn(
                f"Version {parent.number} has learnt every row of this update's tasks already; add examples or set relearn: true."
            )
        replay = _write_buffer(
            session, model=model, update=update, parent=parent, path=work / "replay.ndjson", ids=trained_on
        )
    return Plan(
        model=model, update=update, parent=parent, slices=tuple(slices), trained_on=array("q", set(trained_on)),
        request=_train_request(model, update, parent, slices, labels, replay, work),
    )  # fmt: skip


def settle_parent(claim: Claim) -> int:
    """Resolves the parent and notes it on the update, in a transaction of its own: reading rows may take long."""
    with session_scope(tenant=claim.tenant, role="worker") as session:
        model = session.get_one(Model, {"tenant_id": claim.tenant, "id": claim.model_id})
        update = session.get_one(Update, {"tenant_id": claim.tenant, "id": claim.update_id})
        # "champion" means the champion of now, so that updates posted in a row build on each other.
        champion = get_champion(session, model=model).version
        number = champion if update.parent == "champion" else int(update.parent)
        if not set_parent(session, claim=claim, version=number):
            raise LeaseLost(claim.update_id)
    return number


def _slices(session: Session, *, model: Model, update: Update, parent: Version) -> list[TaskSlice]:
    slices = []
    for task in get_update_tasks(session, update=update):
        after = 0 if update.relearn else learnt_up_to(session, model=model, lineage=parent.lineage, task=task)
        slices.append(TaskSlice(task_id=task.id, name=task.name, after=after, up_to=max(after, update.cut)))
    return slices


def _fresh(
    session: Session, *, model: Model, update: Update, parent: Version, slices: Sequence[TaskSlice]
) -> Iterator[StoredExample]:
    if "all_rows" in strategies()[update.strategy].uses:
        slices = _everything(session, model=model, parent=parent, slices=slices)
    for piece in slices:
        yield from fresh_rows(
            session, task_id=piece.task_id, after_batch=piece.after, up_to_batch=piece.up_to
        )


def _everything(
    session: Session, *, model: Model, parent: Version, slices: Sequence[TaskSlice]
) -> list[TaskSlice]:
    """The slices of every task the lineage has learnt and of the update's own, from the first batch on."""
    learnt = session.execute(
        select(VersionTask.task_id, Task.name, VersionTask.up_to_batch)
        .join(Task, Task.id == VersionTask.task_id)
        .where(
            VersionTask.model_id == model.id,
            among(VersionTask.version, parent.lineage),
            Task.deleted_at.is_(None),
        )
    )
    ends = {piece.task_id: (piece.name, piece.up_to) for piece in slices}
    for task_id, name, up_to in learnt:
        ends[task_id] = (name, max(up_to, ends.get(task_id, (name, 0))[1]))
    return [
        TaskSlice(task_id=task_id, name=name, after=0, up_to=up_to)
        for task_id, (name, up_to) in sorted(ends.items())
    ]


def _write_buffer(
    session: Session, *, model: Model, update: Update, parent: Version, path: Path, ids: "array[int]"
) -> dict[str, Any]:
    """Writes the replay buffer, and returns what the version is to say of how it was shared out."""
    if strategies()[update.strategy].starts_from == "base":
        write_rows(path, [], names={})
        return {}
    lineage, weights, replay = parent.lineage, None, dict(update.replay)
    if replay["boost"] == "flips":
        boost = flip_boost(session, model=model, lineage=lineage, cut=update.cut)
        weights, replay["boosted"] = boost.weights, boost.record()
    buffer = read_buffer(session, model=model, lineage=lineage, cut=update.cut, weights=weights)
    stored = rows_by_id(session, buffer.example_ids)
    rows = write_rows(path, stored, names=_names(session, model), ids=ids)
    return replay | {"capacity": model.replay["capacity"], "rows": rows}


def _names(session: Session, model: Model) -> dict[str, str]:
    rows = session.execute(select(Task.id, Task.name).where(Task.model_id == model.id))
    return {task_id: name for task_id, name in rows}  # noqa: C416


def write_rows(
    path: Path,
    rows: Iterable[StoredExample],
    *,
    names: dict[str, str],
    labels: set[str] | None = None,
    ids: "array[int] | None" = None,
) -> int:
    """Writes examples as NDJSON for the training child and returns how many; notes their labels and ids."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            document = {"id": row.id, "task": names[row.task_id], **row.content, "label": row.label}
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
            count += 1
            show_life()
            if labels is not None and row.label is not None:
                labels.add(row.label)
            if ids is not None:
                ids.append(row.id)
    return count


def _train_request(
    model: Model, update: Update, parent: Version, slices: Sequence[TaskSlice], labels: set[str],
    replay: dict[str, Any], work: Path,
) -> TrainRequest:  # fmt: skip
    known = list(parent.labels)
    return TrainRequest(
        task_type=model.task_type,
        base=base_folder(model.base_model),
        adapter=adapter_settings(model),
        strategy=update.strategy,
        parameters=update.parameters,
        settings=training_settings(update.training),
        parent=str(version_folder(parent, work=work)) if parent.artifact_sha256 else None,
        parent_state=str(state_folder(parent, work=work)) if parent.artifact_sha256 else None,
        labels=(*known, *sorted(labels - set(known))),
        fresh=str(work / "fresh.ndjson"),
        replay=str(work / "replay.ndjson"),
        output=str(work / "version"),
        checkpoints=str(work / CHECKPOINTS.format(parent=parent.number)),
        checkpoint_seconds=get_settings().checkpoint_seconds,
        lineage={
            "model": model.name,
            "update": update.id,
            "parent": parent.number,
            "data_cut": update.cut,
            "tasks": {
                piece.name: {"after_batch": piece.after, "up_to_batch": piece.up_to} for piece in slices
            },
            "replay": replay,
        },
    )


def training_settings(training: Mapping[str, Any]) -> TrainingSettings:
    """Returns how one training goes, as the training child takes it: of the others that an update repeats it knows nothing."""
    return TrainingSettings(**{name: value for name, value in training.items() if name != "repeats"})


def adapter_settings(model: Model) -> AdapterSettings:
    """Returns the shape of the model's adapter as the training child takes it."""
    adapter = dict(model.adapter)
    if isinstance(adapter["target_modules"], list):
        adapter["target_modules"] = tuple(adapter["target_modules"])
    return AdapterSettings(**adapter)


def version_folder(version: Version, *, work: Path) -> Path:
    """Returns the version's verified folder, unpacked below `work` on first use."""
    if version.artifact_sha256 is None:
        raise ValueError(f"version {version.number} has no folder")
    target = work / "versions" / version.artifact_sha256
    return target if target.exists() else get_store().get_folder(version.artifact_sha256, target)


def state_folder(version: Version, *, work: Path) -> Path:
    """Returns the folder of what the version's strategy left for the next update; an empty one where nothing is left."""
    if version.state_sha256 is None:
        empty = work / "no-state"
        empty.mkdir(parents=True, exist_ok=True)
        return empty
    target = work / "states" / version.state_sha256
    if target.exists():
        return target
    try:
        return get_store().get_folder(version.state_sha256, target)
    except ArtifactDamaged:
        if _state_now(version) == version.state_sha256:
            raise
        raise StateErased from None


def _state_now(version: Version) -> str | None:
    with session_scope(tenant=version.tenant_id, role="worker") as session:
        return session.scalar(
            select(Version.state_sha256).where(
                Version.model_id == version.model_id, Version.number == version.number
            )
        )


def base_folder(name: str) -> BaseFolder:
    """Returns where a base model of the catalogue lies on this worker's disk. Raises `BaseModelMissing`."""
    entry = get_settings().catalogue.get(name)
    if entry is None:
        raise BaseModelMissing(
            f"The base model '{name}' is no longer in the catalogue; add it to PALIMPSEST_BASE_MODELS."
        )
    folder = _locate(name, entry)
    file = entry.gguf or "config.json"
    if not (folder / file).exists():
        log.error("base_model_missing", base_model=name, folder=str(folder), file=file)
        raise BaseModelMissing(
            f"The base model '{name}' has no {file} in its folder on this worker, whose log says where that is."
        )
    cache = None if entry.gguf is None else str(_base_cache())
    return BaseFolder(
        name=name,
        folder=str(folder),
        revision=entry.revision,
        gguf=entry.gguf,
        cache=cache,
        pinned=entry.sha256,
    )


def _base_cache() -> Path:
    return get_settings().base_cache_dir or work_root() / "bases"


def _locate(name: str, entry: BaseCheckpoint) -> Path:
    if entry.folder is not None:
        return entry.folder
    if entry.package is not None:
        spec = importlib.util.find_spec(entry.package)
        if spec is None or not spec.submodule_search_locations:
            raise BaseModelMissing(
                f"The base model '{name}' comes with the Python package {entry.package}, which is not installed on this worker."
            )
        return Path(next(iter(spec.submodule_search_locations))) / entry.path
    return _hub_snapshot(name, entry)


def _hub_snapshot(name: str, entry: BaseCheckpoint) -> Path:
    from huggingface_hub import snapshot_download  # the worker starts faster without it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if entry.hub_id is None or entry.revision is None:
        raise BaseModelMissing(
            f"The base model '{name}' names neither package nor folder, nor a hub id with a revision."
        )
    offline = get_settings().hub_offline
    try:
        # It may take hours, or wait as long for another process that fetches the same; its connections have time-outs.
        with show_life_meanwhile():
            snapshot = snapshot_download(
                entry.hub_id, revision=entry.revision, local_files_only=offline,
                allow_patterns=[entry.gguf] if entry.gguf else ["*.json", "*.safetensors", "*.txt", "*.model"],
            )  # fmt: skip
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        how = (
            "it is not in the local cache, and PALIMPSEST_HUB_OFFLINE forbids fetching it"
            if offline
            else reason_of(error)
        )
        raise BaseModelMissing(
            f"The base model '{name}' ({entry.hub_id}@{entry.revision}) cannot be had: {how}."
        ) from error
    return Path(snapshot)
