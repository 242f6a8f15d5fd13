"""The same update with further seeds, to see what a seed alone changes: trained, scored, thrown away.

The version's own training comes first and is the one that an update without repeats has, so that nothing here can choose
it. Every further seed is recorded as soon as it is scored: whoever takes the update over trains only what is missing.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from structlog import get_logger

from service.db import session_scope
from service.evaluations.outcomes import Outcomes
from service.evaluations.repeats import forget_other_repeats, record_repeat, scored_seeds
from service.failpoints import reach
from service.models import Update
from service.tracing import span
from service.updates import leases
from service.updates.catalogue import strategies
from service.updates.leases import Claim
from workers.child import Trainer
from workers.lease import Lease, LeaseLost
from workers.preparation import Plan
from workers.scoring import Candidate, Round, as_outcomes, evaluation_of, plan_round
from workers.training.contract import Progress, TrainRequest, TrainResult
from workers.training.errors import DIVERGED, TrainingFailed
from workers.workspace import CHECKPOINTS

log = get_logger(__name__)


def repeats_of(update: Update) -> int:
    """Returns how many trainings an update asks for, the version's own included."""
    return int(update.training.get("repeats", 1))


def repeat_seeds(seed: int, count: int) -> list[int]:
    """Returns `count` further seeds, all different from `seed` and each other; the same ones for the same seed.

    31 bits of a hash each: neighbours of `seed` are what people take for updates of their own.
    """
    found: list[int] = []
    number = 0
    while len(found) < count:
        number += 1
        digest = hashlib.sha256(f"palimpsest repeat {number} of seed {seed}".encode()).digest()
        further = int.from_bytes(digest[:4]) >> 1
        if further != seed and further not in found:
            found.append(further)
    return found


@dataclass(slots=True)
class Course:
    """How far all trainings of an update are together, from what the child says of the one that runs.

    `done` trainings are over, `running` is the number of the one that is not; each takes `steps`.
    """

    trainings: int
    running: int = 1
    done: int = 0
    steps: int = 0
    step: int = 0
    seconds_per_step: float | None = None

    def begin(self, *, running: int, done: int) -> None:
        """Turns to another training."""
        self.running, self.done, self.step = running, done, 0

    def overall(self, progress: Progress) -> Progress:
        """Returns the progress of one training as that of all."""
        if self.trainings == 1:
            return progress
        named = replace(progress, repeat=self.running, repeats=self.trainings)
        if progress.phase == "training":
            self._note(progress)
        elif self.steps == 0 or progress.phase == "searching":
            return named  # how long a training is shows with its first step
        position, total = self.done * self.steps + self.step, self.trainings * self.steps
        kept = self.done * self.steps + progress.checkpoint_step
        left = None if self.seconds_per_step is None else self.seconds_per_step * (total - position)
        return replace(
            named, step=position, total_steps=total, eta_seconds=left, checkpoint_step=kept,
        )  # fmt: skip

    def _note(self, progress: Progress) -> None:
        self.steps, self.step = progress.total_steps, progress.step
        left = progress.total_steps - progress.step
        if progress.eta_seconds is not None and left > 0:
            self.seconds_per_step = progress.eta_seconds / left


@dataclass(slots=True)
class Repeats:
    """The further seeds of one attempt at an update, and what it takes to train and score them."""

    claim: Claim
    plan: Plan
    candidate: Candidate
    lease: Lease
    work: Path
    trainer: Trainer
    course: Course
    request: TrainRequest  # of the version, with the strategy that `auto` chose for it
    seeds: list[int] = field(default_factory=list)
    diverged: list[int] = field(default_factory=list)

    def measure(self) -> None:
        """Trains and scores every seed that is not scored yet; one whose training runs away is noted and passed over.

        Raises what a training raises: `Cancelled`, `Stopped`, `TrainingFailed`, `ChildDied`; and `LeaseLost`.
        """
        round_ = plan_round(self.claim, candidate=self.candidate, work=self.work)
        basis = basis_of(self.plan, self.request)
        scored = self._scored(round_, basis=basis)
        for number, seed in enumerate(self.seeds, start=2):
            if seed in scored:
                continue
            self.course.begin(running=number, done=1 + len(scored) + len(self.diverged))
            try:
                with span("repeat", attributes={"palimpsest.seed": seed}):
                    made = self._train_and_score(seed, round_)
            except TrainingFailed as error:
                if error.code not in DIVERGED:
                    raise
                log.warning("repeat_diverged", seed=seed, code=error.code)
                self.diverged.append(seed)
            else:
                self._record(seed, round_, made, basis=basis)
                scored.add(seed)
            self._throw_away(seed)

    def _scored(self, round_: Round, *, basis: str) -> set[int]:
        """What an earlier attempt has measured already, and this one may stand on."""
        with session_scope(tenant=self.claim.tenant, role="worker") as session:
            if leases.hold(session, claim=self.claim) is None:
                raise LeaseLost(self.claim.update_id)
            forget_other_repeats(session, update_id=self.claim.update_id, basis=basis)
            sets = [task.eval_set.id for task in round_.tasks]
            return scored_seeds(session, update_id=self.claim.update_id, eval_sets=sets) & set(self.seeds)

    def _train_and_score(self, seed: int, round_: Round) -> Mapping[str, Outcomes]:
        request = replace(
            self.request,
            settings=replace(self.request.settings, seed=seed),
            output=str(self._folder(seed)),
            checkpoints=str(self._checkpoints(seed)),
        )
        self.trainer.train(request, on_progress=self._tell, watch=self.lease.watch)
        made = {}
        for task in round_.tasks:
            evaluation = evaluation_of(
                self._folder(seed), model=self.plan.model, task=task, batch_size=request.settings.evaluation_batch_size
            )  # fmt: skip
            answer = self.trainer.evaluate(evaluation, on_progress=self._tell, watch=self.lease.watch)
            made[task.eval_set.id] = as_outcomes(answer)
        return made

    def _tell(self, progress: Progress) -> None:
        self.lease.report(self.course.overall(progress))

    def _record(self, seed: int, round_: Round, made: Mapping[str, Outcomes], *, basis: str) -> None:
        self.lease.check()
        with session_scope(tenant=self.claim.tenant, role="worker") as session:
            update = leases.hold(session, claim=self.claim)
            if update is None:
                raise LeaseLost(self.claim.update_id)
            for task in round_.tasks:
                record_repeat(
                    session, update=update, seed=seed, basis=basis, eval_set=task.eval_set,
                    outcomes=made[task.eval_set.id],
                )  # fmt: skip
        reach("repeat_recorded")

    def _throw_away(self, seed: int) -> None:
        shutil.rmtree(self._folder(seed), ignore_errors=True)
        shutil.rmtree(self._checkpoints(seed), ignore_errors=True)

    def _folder(self, seed: int) -> Path:
        return self.work / f"repeat-{seed}"

    def _checkpoints(self, seed: int) -> Path:
        return self.work / f"{CHECKPOINTS.format(parent=self.plan.parent.number)}-seed-{seed}"


def measure_repeats(
    claim: Claim, *, plan: Plan, result: TrainResult, candidate: Candidate, lease: Lease, work: Path, trainer: Trainer,
    course: Course,
) -> dict[str, Any] | None:  # fmt: skip
    """Measures what a seed alone changes, and returns what the version's statistics say of it; None where none was to be.

    What `auto` has chosen for the version is trained, without another search: the noise is that of the training.
    """
    if course.trainings == 1:
        return None
    request = chosen(plan.request, result)
    if not strategies()[request.strategy].seeded:
        seedless = f"'{request.strategy}', which was chosen, draws nothing at random: every seed gives the very same version"
        return {"seeds": [], "diverged": [], "seconds": 0.0, "reason": seedless}
    began = time.monotonic()
    repeats = Repeats(
        claim, plan, candidate, lease, work, trainer, course, request,
        seeds=repeat_seeds(request.settings.seed, course.trainings - 1),
    )  # fmt: skip
    repeats.measure()
    scored = [seed for seed in repeats.seeds if seed not in repeats.diverged]
    reason = None if scored else "the training of every further seed ran away"
    return {
        "seeds": scored, "diverged": repeats.diverged, "seconds": time.monotonic() - began, "reason": reason,
    }  # fmt: skip


def chosen(request: TrainRequest, result: TrainResult) -> TrainRequest:
    """Returns the request as it was trained: with the winner where `auto` searched for one."""
    if result.auto is None:
        return request
    winner = result.auto["winner"]
    return replace(request, strategy=winner["strategy"], parameters=dict(winner["parameters"]))


def basis_of(plan: Plan, request: TrainRequest) -> str:
    """Returns a hash of all that decides what a seed gives, beside the seed: strategy, parent and rows.

    Rows are known by their ids, which never stand for another text. The settings are the update's, which never change.
    """
    facts = [
        request.strategy, dict(request.parameters), plan.parent.number, plan.parent.artifact_sha256,
        plan.parent.state_sha256, sorted(plan.trained_on),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
