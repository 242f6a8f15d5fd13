"""Which trainings take place of an update that measures its own noise: stopped, killed, cancelled, erased under, left to `auto`."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from service.db import session_scope
from service.models import RepeatScore
from tests.scenes import World
from tests.workers.repeated import SECOND, SEED, THIRD, THREE, stored, weights
from tests.workers.test_pipeline import kill_child
from workers import repeats
from workers.child import Trainer
from workers.lease import Lease
from workers.training.contract import Progress, TrainRequest, TrainResult
from workers.training.errors import ChildDied, TrainingFailed


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of every training from here on."""
    seeds: list[int] = []
    original = Trainer.train

    def train(self: Trainer, request: TrainRequest, **callbacks: Any) -> TrainResult:
        seeds.append(request.settings.seed)
        return original(self, request, **callbacks)

    monkeypatch.setattr(Trainer, "train", train)
    return seeds


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """All progress from here on, as it is written with the lease."""
    seen: list[Progress] = []
    original = Lease.report

    def report(self: Lease, progress: Progress) -> None:
        seen.append(progress)
        original(self, progress)

    monkeypatch.setattr(Lease, "report", report)
    return seen


def once_in(monkeypatch: pytest.MonkeyPatch, repeat: int, act: Callable[[], object]) -> None:
    """Has `act` happen when that training, of an update's several, has taken a step."""
    original, left = Lease.report, [1]

    def report(self: Lease, progress: Progress) -> None:
        original(self, progress)
        own = progress.total_steps // progress.repeats * (repeat - 1)
        if left[0] and progress.repeat == repeat and progress.phase == "training" and progress.step > own:
            left[0] = 0
            act()

    monkeypatch.setattr(Lease, "report", report)


@pytest.mark.slow
def test_a_stopped_update_goes_on_within_its_repeat_and_keeps_those_before(
    world: World, trained: list[int], reported: list[Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third training is stopped half way: another worker trains neither of the two before, nor its first half."""
    for name in ("whole", "stopped"):
        world.model(name)
        world.task("one", model=name)
    whole = world.learn("one", model="whole", training=THREE)
    check_course(reported, trainings=3)
    stopping = threading.Event()
    with monkeypatch.context() as patch:
        once_in(patch, 3, stopping.set)
        update = world.request("one", model="stopped", training=THREE)
        world.work(stopping=stopping)
    assert world.update(update["id"])["status"] == "queued"
    assert set(stored(update["id"])) == {SECOND}
    trained.clear()
    reported.clear()
    world.work()
    ended = world.update(update["id"])
    assert (ended["status"], ended["version"], ended["attempt"]) == ("promoted", 1, 1)
    assert trained == [SEED, THIRD]
    steps = world.get("/models/stopped/versions/1")["statistics"]["steps"]
    trainings = [now for now in reported if now.phase == "training"]
    assert next(now for now in trainings if now.repeat == 1).step == steps  # from its last checkpoint
    assert next(now for now in trainings if now.repeat == 3).step > 2 * steps
    assert stored(whole["id"]) == stored(ended["id"])
    assert weights(world, "whole") == weights(world, "stopped")


def check_course(reported: list[Progress], *, trainings: int) -> None:
    """Progress of an undisturbed update goes on and on over all trainings, and says which one runs."""
    steps = [now for now in reported if now.phase == "training"]
    total = steps[0].total_steps
    assert {now.total_steps for now in steps} == {total}
    assert {now.repeats for now in steps} == {trainings}
    assert sorted({now.repeat for now in steps}) == list(range(1, trainings + 1))
    assert all(before.step <= after.step for before, after in itertools.pairwise(steps))
    assert steps[-1].step == total
    told = [now.eta_seconds for now in steps if now.repeat == 1 and now.eta_seconds]
    assert told
    assert max(told) > 0


@pytest.mark.slow
def test_a_trainer_that_dies_in_a_repeat_costs_an_attempt_and_no_finished_repeat(
    world: World, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("one")
    once_in(monkeypatch, 3, kill_child)
    ended = world.learn(
        "one", training={**THREE, "epochs": 6}
    )  # long enough that the signal meets the child at work
    assert (ended["status"], ended["attempt"]) == ("promoted", 2)
    assert trained == [SEED, SECOND, THIRD, SEED, THIRD]


@pytest.mark.slow
def test_what_was_measured_with_an_example_that_is_erased_meanwhile_is_measured_anew(
    world: World, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("one")
    row = {"text": "the one to be forgotten", "label": "os", "split": "train", "subject": "p1"}
    world.examples("one", [row])
    stopping = threading.Event()
    with monkeypatch.context() as patch:
        once_in(patch, 3, stopping.set)
        update = world.request("one", training=THREE)
        world.work(stopping=stopping)
    before = basis(update["id"])
    assert len(before) == 1
    world.ok(world.client.delete("/v1/models/triage/examples?subject=p1"))
    trained.clear()
    world.work()
    assert world.update(update["id"])["status"] == "promoted"
    assert trained == [SEED, SECOND, THIRD]
    assert len(basis(update["id"])) == 1
    assert basis(update["id"]) != before


def basis(update_id: str) -> set[str]:
    with session_scope(tenant="acme") as session:
        return set(session.scalars(select(RepeatScore.basis).where(RepeatScore.update_id == update_id)))


def test_a_cancel_in_a_repeat_ends_the_update(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.model()
    world.task("one")
    update = world.request("one", training={**World.TRAINING, "epochs": 6, "repeats": 2})
    once_in(monkeypatch, 2, lambda: world.client.post(f"/v1/updates/{update['id']}/cancel"))
    world.work()
    ended = world.update(update["id"])
    assert (ended["status"], ended["version"]) == ("cancelled", None)


def fails_with(monkeypatch: pytest.MonkeyPatch, seed: int, error: Exception) -> None:
    """Has every training with that seed end with an error."""
    original = Trainer.train

    def train(self: Trainer, request: TrainRequest, **callbacks: Any) -> TrainResult:
        if request.settings.seed == seed:
            raise error
        return original(self, request, **callbacks)

    monkeypatch.setattr(Trainer, "train", train)


def test_a_seed_whose_training_runs_away_counts_in_no_figure_and_fails_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(monkeypatch, SECOND, TrainingFailed("non_finite_loss", "step 3: the loss is nan"))
    world.model()
    world.task("one")
    assert world.learn("one", training=THREE)["status"] == "promoted"
    noise = world.get("/models/triage/versions/1/report")["noise"]
    assert (noise["seeds"], noise["diverged"]) == ([SEED, THIRD], [SECOND])
    assert "ran away" in noise["detail"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "attempts", "code"),
    [
        (TrainingFailed("bad_shape", "no attempt can mend this"), 1, "bad_shape"),
        (ChildDied(-9), 3, "trainer_died"),
    ],
    ids=["final", "on the last attempt"],
)
def test_a_seed_that_fails_for_good_is_named_and_the_trained_version_lives(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, attempts: int, code: str
) -> None:
    fails_with(monkeypatch, SECOND, error)
    world.model()
    world.task("one")
    ended = world.learn("one", training={**THREE, "epochs": 1})
    assert (ended["status"], ended["attempt"]) == ("promoted", attempts)
    said = world.get("/models/triage/versions/1")["statistics"]["repeats"]
    assert (said["seeds"], said["diverged"], said["failed"]) == ([THIRD], [], {str(SECOND): code})
    noise = world.get("/models/triage/versions/1/report")["noise"]
    assert (noise["seeds"], noise["failed"]) == ([SEED, THIRD], {str(SECOND): code})


@pytest.mark.slow
@pytest.mark.parametrize("during", [SEED, SECOND], ids=["the version's training", "a further training"])
def test_no_further_seed_is_trained_on_what_was_erased_meanwhile(
    world: World, trained: list[int], monkeypatch: pytest.MonkeyPatch, during: int
) -> None:
    world.model()
    world.task("one")
    row = {"text": "the one to be forgotten", "label": "os", "split": "train", "subject": "p1"}
    world.examples("one", [row])
    noted, left = Trainer.train, [1]

    def train(self: Trainer, request: TrainRequest, **callbacks: Any) -> TrainResult:
        result = noted(self, request, **callbacks)
        if request.settings.seed == during and left:
            left.clear()
            world.ok(world.client.delete("/v1/models/triage/examples?subject=p1"))
        return result

    monkeypatch.setattr(Trainer, "train", train)
    ended = world.learn("one", training={**THREE, "epochs": 1})
    assert (ended["status"], ended["attempt"]) == ("promoted", 1)
    first = [SEED] if during == SEED else [SEED, SECOND]
    assert trained == [*first, SEED, SECOND, THIRD]


def test_without_an_eval_row_nothing_is_repeated_and_the_report_says_why(
    world: World, trained: list[int]
) -> None:
    world.model()
    world.task("one", held=0)
    held = [
        {"text": f"what {label} does", "label": label, "split": "eval", "subject": "p1"}
        for label in ("math", "os")
    ]
    world.examples("one", held)
    update = world.request("one", training={**THREE, "epochs": 1})
    world.ok(world.client.delete("/v1/models/triage/examples?subject=p1"))
    world.work()
    assert world.update(update["id"])["status"] == "promoted"
    assert trained == [SEED]
    assert "no task has an eval row" in world.get("/models/triage/versions/1/report")["noise"]["detail"]


@pytest.mark.slow
def test_where_another_attempt_of_auto_chooses_without_a_seed_what_was_measured_is_forgotten(
    world: World, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model()
    world.task("one")
    stopping = threading.Event()
    with monkeypatch.context() as patch:
        once_in(patch, 3, stopping.set)
        update = world.request("one", training=THREE)
        world.work(stopping=stopping)
    assert set(stored(update["id"])) == {SECOND}
    monkeypatch.setattr(
        repeats, "chosen", lambda request, result: replace(request, strategy="analytic", parameters={})
    )
    trained.clear()
    world.work()
    assert world.update(update["id"])["status"] == "promoted"
    assert (trained, stored(update["id"])) == ([SEED], {})
    noise = world.get("/models/triage/versions/1/report")["noise"]
    assert noise["seeds"] == [SEED]
    assert "draws nothing at random" in noise["detail"]


def test_repeats_of_auto_train_what_it_chose(world: World, trained: list[int]) -> None:
    world.model()
    world.task("one")
    ended = world.learn("one", strategy={"name": "auto"}, training={**World.TRAINING, "repeats": 2})
    assert (ended["status"], ended["error"]) == ("promoted", None)
    assert trained == [SEED, SECOND]
    assert world.get("/models/triage/versions/1/report")["noise"]["seeds"] == [SEED, SECOND]
