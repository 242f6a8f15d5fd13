"""run_forecast(): the whole story of one claimed forecast. Nothing is registered.

Probe the update that is forecast → probe past updates that never were → answer. Every probe commits by itself, so that
whoever takes a forecast over goes on from there. What a probe trains is thrown away; what it measured is kept.
"""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from structlog import get_logger

from service.config import get_settings
from service.db import EVERY_TENANT, among, session_scope
from service.errors import ServiceError
from service.examples.queries import eval_ids, rows_by_id, visible_labels
from service.failpoints import reach
from service.forecasts.commands import finish_forecast, keep_probe
from service.forecasts.estimating import Role, Signs
from service.forecasts.leases import FORECASTS
from service.forecasts.probes import Probe, TaskProbe
from service.forecasts.queries import as_update, find_past, stored_probes
from service.leased_rows import RowClaim
from service.models import Forecast, Model, Task, Update, Version, VersionTask
from service.registry.queries import get_model
from service.updates.leases import work_is_waiting
from workers.child import Trainer
from workers.failures import DATABASE_ERRORS, described
from workers.lease import Lease, LeaseLost
from workers.leased_work import carry
from workers.preparation import Plan, StateErased, base_folder, plan_update, write_rows
from workers.training.contract import EvaluateRequest, Outcomes
from workers.training.errors import Cancelled, Stopped
from workers.watchdog import Limits

log = get_logger(__name__)

MOST_EVAL_ROWS = 500
"""Of each task that parent and probe are asked: a change of a hundredth shows, and a probe stays cheap."""


ENOUGH_ROWS = 0.95
"""Of those that a past update learnt: below that share, a probe of it would be one of another update."""


class RowsGone(ServiceError):
    """Rows that a past update learnt were erased, corrected or removed by retention."""

    status, code = 409, "rows_gone"


@dataclass(frozen=True, slots=True)
class OldTask:
    """One task that was learnt, or is guarded, before an update: its eval rows on disk, and the labels it has."""

    task_id: str
    role: Role
    rows: int
    path: Path
    labels: frozenset[str]


@dataclass(frozen=True, slots=True)
class Prober:
    """Whoever probes, one update after the other."""

    model: Model
    share: float
    trainer: Trainer
    lease: Lease
    work: Path

    def probe(self, update: Update, *, parent_version: int) -> Probe:
        """Takes the first steps of an update and returns what they showed of the tasks learnt before it.

        Raises whatever preparing and training the update itself would, and `RowsGone` for a past update whose rows are not
        those that it learnt any more.
        """
        work = self.work / update.id
        try:
            return self._probe(update, parent_version=parent_version, work=work)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _probe(self, update: Update, *, parent_version: int, work: Path) -> Probe:
        plan = plan_update(self.model, update, parent_version=parent_version, work=work)
        if update.version is not None:
            require_its_rows(self.model, update, fresh=Path(plan.request.fresh))
        old = old_tasks(self.model, update=update, parent=plan.parent, work=work)
        request = replace(plan.request, share=self.share, checkpoints=str(work / "checkpoints"))
        result = self.trainer.probe(request, on_progress=self.lease.report, watch=self.lease.watch)
        began = time.monotonic()
        before = [self._asked(plan, plan.request.parent, task) for task in old]
        after = [self._asked(plan, request.output, task) for task in old]
        counts = label_counts(Path(request.fresh))
        signs = [
            signs_of(one, other, new_loss=result.new_loss, overlap=overlap(counts, task.labels))
            for task, one, other in zip(old, before, after, strict=True)
        ]
        return Probe(
            steps=result.steps, total_steps=result.total_steps, rate_share=result.rate_share, fresh_rows=result.fresh_rows,
            replay_rows=result.replay_rows, prepare_seconds=result.prepare_seconds, train_seconds=result.train_seconds,
            scoring_seconds=time.monotonic() - began, scored_rows=2 * sum(task.rows for task in old),
            tasks={task.task_id: TaskProbe(task.role, task.rows, sign) for task, sign in zip(old, signs, strict=True)},
        )  # fmt: skip

    def _asked(self, plan: Plan, version: str | None, task: OldTask) -> Outcomes:
        request = EvaluateRequest(
            task_type=self.model.task_type, base=base_folder(self.model.base_model), version=version, rows=str(task.path),
            batch_size=plan.request.settings.evaluation_batch_size,
        )  # fmt: skip
        return self.trainer.evaluate(request, on_progress=self.lease.report, watch=self.lease.watch)


def run_forecast(claim: RowClaim, *, stopping: threading.Event) -> None:
    """Carries one claimed forecast as far as it goes, and leaves the row in a state that says how far that was."""
    carry(FORECASTS, claim, _work, stopping=stopping)


def _work(claim: RowClaim, lease: Lease, work: Path) -> None:
    with session_scope(tenant=claim.tenant, role="worker") as session:
        model = session.get_one(Model, {"tenant_id": claim.tenant, "id": claim.model_id})
        forecast = session.get_one(Forecast, {"tenant_id": claim.tenant, "id": claim.row_id})
        past = find_past(session, model=model, forecast=forecast)
        known = stored_probes(session, updates=past, share=forecast.share)
    settings = get_settings()
    with Trainer(Limits(settings.progress_timeout_seconds, settings.memory_limit_bytes)) as trainer:
        prober = Prober(model, forecast.share, trainer, lease, work)
        if forecast.probe is None:
            probe = _own_probe(prober, forecast)
            with _kept(claim) as (_, row):
                row.probe = probe.to_json()
            _let_updates_pass()
        skipped = _probe_past(claim, prober, [update for update in past if update.id not in known])
    lease.check()
    with session_scope(tenant=claim.tenant, role="worker") as session:
        if not finish_forecast(session, claim=claim, skipped=skipped):
            raise LeaseLost(claim.row_id)


def _own_probe(prober: Prober, forecast: Forecast) -> Probe:
    try:
        return prober.probe(as_update(forecast), parent_version=forecast.parent_version)
    except StateErased:  # meanwhile; prepared anew, it does without
        return prober.probe(as_update(forecast), parent_version=forecast.parent_version)


def _let_updates_pass() -> None:
    """Gives the forecast back while an update could be claimed. Raises `Stopped`.

    Called after a probe was kept, so that every claim gets further.
    """
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        if work_is_waiting(session):
            raise Stopped


def _probe_past(claim: RowClaim, prober: Prober, updates: Sequence[Update]) -> dict[str, str]:
    """Probes past updates and keeps what they showed; returns those that cannot be probed now, and why.

    A past update that fails costs the forecast this one lesson and nothing else: it may want another machine.
    """
    skipped = {}
    for update in updates:
        try:
            probe = prober.probe(update, parent_version=update.parent_version or 0)
        except StateErased:
            skipped[update.id] = "what its parent's strategy had left was erased"
            continue
        except (Stopped, Cancelled, LeaseLost, *DATABASE_ERRORS):
            raise
        except Exception as error:
            failure = described(error)
            log.warning("past_update_skipped", update=update.id, code=failure.code)
            skipped[update.id] = failure.message
            continue
        with _kept(claim) as (session, forecast):
            keep_probe(session, forecast=forecast, update_id=update.id, probe=probe)
        _let_updates_pass()
    return skipped


@contextmanager
def _kept(claim: RowClaim) -> Iterator[tuple[Session, Forecast]]:
    """A transaction that keeps what one probe showed, while the claim holds."""
    with session_scope(tenant=claim.tenant, role="worker") as session:
        get_model(session, model=claim.model_id, hold=True)  # a purge takes it first, then its rows
        row = FORECASTS.hold(session, claim=claim)
        if row is None:
            raise LeaseLost(claim.row_id)
        yield session, row
    reach("forecast_probe_kept")


def require_its_rows(model: Model, update: Update, *, fresh: Path) -> None:
    """Raises `RowsGone` unless nearly all rows that a past update learnt were prepared once more: what came of it would be
    held against a probe of something else."""
    with session_scope(tenant=model.tenant_id, role="worker") as session:
        learnt = int(
            session.scalar(
                select(func.sum(VersionTask.rows)).where(
                    VersionTask.model_id == model.id, VersionTask.version == update.version
                )
            )
            or 0
        )
    with fresh.open("rb") as lines:
        there = sum(1 for _ in lines)
    if there < ENOUGH_ROWS * learnt:
        raise RowsGone(f"Only {there} of the {learnt} rows that it learnt are still there.")


def old_tasks(model: Model, *, update: Update, parent: Version, work: Path) -> list[OldTask]:
    """Writes the eval rows of every task that the update must not lose, `MOST_EVAL_ROWS` of each, and says where they lie.

    A parent that cannot answer, the base of a classifier, has nothing to lose. A task without eval rows is left out.
    """
    if parent.artifact_sha256 is None and not model.is_graded:
        return []
    found = []
    with session_scope(tenant=model.tenant_id, role="worker") as session:
        for task in _tasks_before(session, model=model, parent=parent):
            ids = sample(eval_ids(session, task_id=task.id, cut=update.cut))
            path = work / f"old-{task.id}.ndjson"
            count = write_rows(path, rows_by_id(session, ids), names={task.id: task.name})
            labels = visible_labels(session, task_id=task.id, split="train", cut=update.cut)
            role: Role = "relearnt" if task.id in update.task_ids else "old"
            if count:
                found.append(OldTask(task.id, role, count, path, frozenset(labels)))
    return found


def _tasks_before(session: Session, *, model: Model, parent: Version) -> Sequence[Task]:
    learnt = select(VersionTask.task_id).where(
        VersionTask.model_id == model.id, among(VersionTask.version, parent.lineage)
    )
    wanted = (Task.id.in_(learnt)) | Task.guarded
    return session.scalars(
        select(Task).where(Task.model_id == model.id, Task.deleted_at.is_(None), wanted).order_by(Task.name)
    ).all()


def sample(ids: Sequence[int]) -> list[int]:
    """At most `MOST_EVAL_ROWS` of the ids, the same ones for the same ids, in their order."""
    picked = np.random.default_rng(0).permutation(len(ids))[:MOST_EVAL_ROWS]
    return [ids[place] for place in np.sort(picked)]


def signs_of(before: Outcomes, after: Outcomes, *, new_loss: float, overlap: float) -> Signs:
    """What parent (`before`) and probe (`after`) show of a task, from their answers to the same rows."""
    score_change = mean_score(after) - mean_score(before)
    likelihood_change = score_change
    if before.likelihoods and after.likelihoods:
        likelihood_change = fmean(after.likelihoods) - fmean(before.likelihoods)
    return Signs(
        score_change=score_change, likelihood_change=likelihood_change, parent_score=mean_score(before), new_loss=new_loss,
        label_overlap=overlap,
    )  # fmt: skip


def mean_score(outcomes: Outcomes) -> float:
    """The mean of what the rows are scored by: log-likelihoods, or right and wrong."""
    return fmean(outcomes.graded or map(float, outcomes.correct))


def label_counts(path: Path) -> dict[str, int]:
    """How many rows of a file that `write_rows` wrote carry each label."""
    counts: dict[str, int] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            label = json.loads(line)["label"]
            if label is not None:
                counts[label] = counts.get(label, 0) + 1
    return counts


def overlap(counts: Mapping[str, int], labels: frozenset[str]) -> float:
    """The share of labelled rows whose label is among `labels`; 0 where none has a label."""
    return sum(count for label, count in counts.items() if label in labels) / max(1, sum(counts.values()))
