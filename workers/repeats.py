"""The same update with further seeds, to see what a seed alone changes: trained, scored, thrown away.

The version's own training comes first and is the one that an update without repeats has, so that nothing here can choose
it. Every further seed is recorded as soon as it is scored: whoever takes the update over trains only what is missing.
Nor can they take it away: a seed that ran away, or failed where another attempt would not help, is noted and passed over.
That is not kept for another attempt, which trains such a seed again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from structlog import get_logger

from service.db import session_scope
from service.evaluations.outcomes import Outcomes
from service.evaluations.repeats import forget_other_repeats, record_repeat, scored_seeds
from service.examples.queries import count_stored
from service.failpoints import reach
from service.models import Update
from service.tracing import span
from service.updates import leases
from service.updates.catalogue import strategies
from service.updates.leases import Claim
from workers.child import Trainer
from workers.failures import DATABASE_ERRORS, described, refused
from workers.lease import Lease, LeaseLost
from workers.preparation import Plan, TrainedOnErased
from workers.scoring import Candidate, Round, as_outcomes, evaluation_of, plan_round
from workers.training.contract import Progress, TrainRequest, TrainResult
from workers.training.errors import DIVERGED, Cancelled, Stopped
from workers.workspace import CHECKPOINTS

log = get_logger(__name__)
# What ends an attempt, whichever training it meets.
ENDS = (LeaseLost, Cancelled, Stopped, TrainedOnErased, *DATABASE_ERRORS)
SEEDLESS = "'{strategy}', which was chosen, draws nothing at random: every seed gives the very same version"


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
    scored: set[int] = field(default_factory=set)
    diverged: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)  # code by seed

    @property
    def basis(self) -> str:
        """What scores of this attempt, and of earlier ones that it may stand on, are recorded under."""
        return basis_of(self.plan, self.request)

    def measure(self) -> str | None:
        """Trains and scores every seed that is not scored yet; returns why no seed was, None where some were.

        Raises what ends an attempt (`ENDS`), and what a training raises while attempts are left that may mend it.
        """
        self._forget_others()
        if not strategies()[self.request.strategy].seeded:
            return SEEDLESS.format(strategy=self.request.strategy)
        round_ = plan_round(self.claim, candidate=self.candidate, work=self.work)
        if not round_.tasks:
            return "no task has an eval row to score a further seed on"
        self.scored = self._scored_before(round_)
        for number, seed in enumerate(self.seeds, start=2):
            if seed not in self.scored:
                self._try(seed, round_, number=number)
        return None if self.scored else self._why_none()

    def _try(self, seed: int, round_: Round, *, number: int) -> None:
        over = len(self.scored) + len(self.diverged) + len(self.failed)
        self.course.begin(running=number, done=1 + over)
        try:
            with span("repeat", attributes={"palimpsest.seed": seed}):
                made = self._train_and_score(seed, round_)
            self._record(seed, round_, made)
        except ENDS:
            raise
        except Exception as error:
            self._pass_over(seed, error)
        else:
            self.scored.add(seed)
        self._throw_away(seed)

    def _pass_over(self, seed: int, error: Exception) -> None:
        """Notes what became of a seed; raises the error again where another attempt may mend it, and there is one."""
        failure = described(refused(error) if isinstance(error, DBAPIError) else error)
        if failure.code in DIVERGED:
            self.diverged.append(seed)
        elif failure.final or self.claim.attempt >= self.plan.update.max_attempts:
            self.failed[seed] = failure.code
        else:
            raise error
        unexpected = error if failure.unexpected else None
        log.warning("repeat_failed", seed=seed, code=failure.code, error=str(error), exc_info=unexpected)

    def _why_none(self) -> str:
        if not self.failed:
            return "the training of every further seed ran away"
        codes = ", ".join(sorted(set(self.failed.values())))
        ran_away = f", and the training of {len(self.diverged)} more ran away" if self.diverged else ""
        return f"{len(self.failed)} further seeds failed ({codes}){ran_away}"

    def _hold(self, session: Session) -> Update:
        """Locks the update's row. Raises `LeaseLost`, and `TrainedOnErased` where what is trained on has been erased."""
        left = count_stored(session, self.plan.trained_on)  # before the lock, which lease renewals wait for
        update = leases.hold(session, claim=self.claim)
        if update is None:
            raise LeaseLost(self.claim.update_id)
        if left < len(self.plan.trained_on):
            raise TrainedOnErased
        return update

    def _forget_others(self) -> None:
        """Forgets what earlier attempts measured on something else; there is nothing to stand on in that."""
        with session_scope(tenant=self.claim.tenant, role="worker") as session:
            self._hold(session)
            forget_other_repeats(session, update_id=self.claim.update_id, basis=self.basis)

    def _scored_before(self, round_: Round) -> set[int]:
        """What an earlier attempt has measured already, and this one may stand on."""
        with session_scope(tenant=self.claim.tenant, role="worker") as session:
            sets = [task.eval_set.id for task in round_.tasks]
            found = scored_seeds(session, update_id=self.claim.update_id, eval_sets=sets)
        return found & set(self.seeds)

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

    def _record(self, seed: int, round_: Round, made: Mapping[str, Outcomes]) -> None:
        self.lease.check()
        with session_scope(tenant=self.claim.tenant, role="worker") as session:
            update = self._hold(session)
            for task in round_.tasks:
                record_repeat(
                    session, update=update, seed=seed, basis=self.basis, eval_set=task.eval_set,
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
    began = time.monotonic()
    repeats = Repeats(
        claim, plan, candidate, lease, work, trainer, course, request,
        seeds=repeat_seeds(request.settings.seed, course.trainings - 1),
    )  # fmt: skip
    reason = repeats.measure()
    return {
        "seeds": [seed for seed in repeats.seeds if seed in repeats.scored],
        "diverged": repeats.diverged,
        "failed": {str(seed): code for seed, code in repeats.failed.items()},
        "seconds": time.monotonic() - began,
        "reason": reason,
    }


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
