"""Updates that measure their own noise: real trainings with several seeds, in the real child."""

import io
import itertools
import statistics
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text

from service.artifacts import get_store
from service.db import engine_for, session_scope
from service.models import RepeatScore, Task
from tests.conftest import emptied
from tests.scenes import World, make_client
from tests.service.web.visitors import Browser
from tests.workers.test_pipeline import kill_child
from workers import repeats
from workers.child import Trainer
from workers.lease import Lease
from workers.repeats import Course, repeat_seeds
from workers.training.contract import Progress, TrainRequest, TrainResult
from workers.training.errors import ChildDied, TrainingFailed

SEED = int(str(World.TRAINING["seed"]))
THREE = {**World.TRAINING, "repeats": 3}
SECOND, THIRD = repeat_seeds(SEED, 2)


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


def stored(update_id: str) -> dict[int, dict[str, tuple[float, bytes]]]:
    """What is stored of the further seeds: score and answers by seed and task."""
    found: dict[int, dict[str, tuple[float, bytes]]] = {}
    with session_scope(tenant="acme") as session:
        rows = session.execute(
            select(RepeatScore, Task.name)
            .join(Task, Task.id == RepeatScore.task_id)
            .where(RepeatScore.update_id == update_id)
        )
        for row, task in rows:
            found.setdefault(row.seed, {})[task] = (row.score, row.correct)
    return found


def weights(world: World, model: str) -> dict[str, bytes]:
    """The tensors of a model's first version."""
    tar = world.client.get(f"/v1/models/{model}/versions/1/adapter").content
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = [name for name in archive.getnames() if name.endswith(".safetensors")]
        return {name: file.read() for name in members if (file := archive.extractfile(name)) is not None}


def artifacts() -> set[str]:
    """Everything in the artifact store, which tests share."""
    return {sha256 for sha256, _ in get_store().hashes()}


@pytest.fixture(scope="module")
def stored_before() -> set[str]:
    """What tests before these have left in the store."""
    return artifacts()


@pytest.fixture(scope="module")
def measured(database_url: str, redis_url: str, stored_before: set[str]) -> Iterator[World]:
    """`plain` learns a task once; `noisy` the same with three seeds, and then another task with three."""
    emptied(database_url)
    world = World(make_client("acme"))
    for name in ("plain", "noisy"):
        world.model(name)
        world.task("one", model=name)
    world.learn("one", model="plain")
    world.learn("one", model="noisy", training=THREE)
    world.task("two", ("random", "socket"), model="noisy")
    world.learn("two", model="noisy", training=THREE)
    yield world
    emptied(database_url)


def test_the_version_is_the_one_without_repeats_bit_for_bit(measured: World) -> None:
    plain, noisy = weights(measured, "plain"), weights(measured, "noisy")
    assert len(plain) >= 2
    assert plain == noisy
    plain_score, noisy_score = (
        measured.get(f"/models/{name}/versions/1")["scores"][0] for name in ("plain", "noisy")
    )
    assert plain_score == noisy_score


def test_further_seeds_leave_scores_and_nothing_else(measured: World, stored_before: set[str]) -> None:
    versions = [
        version for name in ("plain", "noisy") for version in measured.get(f"/models/{name}/versions")["data"]
    ]
    kept = {version["artifact"]["sha256"] for version in versions if version["artifact"]}
    assert len(versions) == 5  # two bases, one version, two versions
    assert artifacts() - stored_before == kept - stored_before
    said = measured.get("/models/noisy/versions/2")["statistics"]["repeats"]
    assert (said["seeds"], said["diverged"], said["reason"]) == ([SECOND, THIRD], [], None)
    assert "repeats" not in measured.get("/models/plain/versions/1")["statistics"]
    assert (
        "repeats" not in measured.get("/models/plain/versions/1")["training"]
    )  # workers before this know of none


def test_the_report_shows_the_spread_over_seeds_beside_the_change(measured: World) -> None:
    report = measured.get("/models/noisy/versions/2/report")
    rows = stored(measured.get("/models/noisy/versions/2")["update"])
    others = sorted([SECOND, THIRD])
    assert set(rows) == set(others)
    for task in report["tasks"]:
        noise = task["noise"]
        assert noise["seeds"] == report["noise"]["seeds"] == [SEED, *others]
        assert noise["scores"] == [task["score"], *(rows[seed][task["task"]][0] for seed in others)]
        assert noise["score"]["sd"] == pytest.approx(statistics.stdev(noise["scores"]))
        assert (noise["score"]["low"], noise["score"]["high"]) == (min(noise["scores"]), max(noise["scores"]))
        assert noise["changes"][0] == task["delta"]
        assert noise["changes"] == pytest.approx([score - task["parent_score"] for score in noise["scores"]])
    averages = [statistics.fmean(task["noise"]["scores"][at] for task in report["tasks"]) for at in range(3)]
    summary = report["noise"]["summary"]
    assert averages[0] == pytest.approx(report["summary"]["average_accuracy"])
    assert summary["average_accuracy"]["sd"] == pytest.approx(statistics.stdev(averages))
    assert summary["forgetting"]["low"] <= report["summary"]["forgetting"] <= summary["forgetting"]["high"]


def test_a_first_version_has_scores_over_seeds_and_no_change_to_compare(measured: World) -> None:
    report = measured.get("/models/noisy/versions/1/report")
    one, two = report["tasks"]
    assert len(one["noise"]["scores"]) == 3
    assert (one["noise"]["changes"], one["noise"]["standing"]) == (None, None)
    assert two["noise"] is None  # it came later, and was scored for the second version's sake
    assert report["noise"]["summary"]["average_accuracy"]["sd"] == one["noise"]["score"]["sd"]


def test_the_versions_page_shows_the_change_over_seeds_beside_its_own(measured: World) -> None:
    browser = Browser(measured.client)
    noise = measured.get("/models/noisy/versions/2/report")["tasks"][0]["noise"]
    page = browser.read("/ui/models/noisy/versions/2")
    assert "Over seeds" in page
    assert f"± {noise['change']['sd']:.3f}" in page
    assert "Over seeds" in browser.read("/ui/models/noisy/versions/1")  # where there is no change to show
    assert "Over seeds" not in browser.read("/ui/models/plain/versions/1")


def test_without_repeats_the_report_has_no_noise(measured: World) -> None:
    report = measured.get("/models/plain/versions/1/report")
    assert (report["noise"], report["tasks"][0]["noise"]) == (None, None)


def test_another_tenant_and_the_api_itself_can_neither_read_nor_write_what_was_measured(
    measured: World,
) -> None:
    with session_scope(tenant="globex") as session:
        assert session.scalars(select(RepeatScore)).all() == []
    with session_scope(tenant="acme") as session, pytest.raises(Exception, match="permission denied"):
        session.execute(text("DELETE FROM repeat_scores"))


def test_a_blend_of_a_noisy_version_is_made_once(measured: World) -> None:
    answer = measured.client.post(
        "/v1/models/noisy/versions/2/blend", json={"beta": 0.5, "promotion": "manual"}
    )
    update = measured.ok(answer)
    measured.work()
    ended = measured.update(update["id"])
    assert (ended["status"], ended["error"]) == ("awaiting_approval", None)
    assert "repeats" not in ended["training"]
    assert measured.get(f"/models/noisy/versions/{ended['version']}/report")["noise"] is None


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


def test_a_purge_takes_what_was_measured_along(world: World, database: str) -> None:
    world.model()
    world.task("one")
    world.learn("one", training={**World.TRAINING, "repeats": 2})
    count = "SELECT count(*) FROM repeat_scores"
    with engine_for(database).begin() as connection:
        assert connection.scalar(text(count)) == 1
    assert world.client.delete("/v1/models/triage").status_code == 204
    world.ok(world.client.post("/v1/models/triage/purge"))
    with engine_for(database).begin() as connection:
        assert connection.scalar(text(count)) == 0


def test_an_eval_set_that_goes_finds_its_repeats_by_an_index(database: str) -> None:
    with engine_for(database).begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        wanted = "SELECT FROM repeat_scores WHERE tenant_id = 'acme' AND eval_set_id = 'one'"
        plan = "\n".join(connection.scalars(text(f"EXPLAIN {wanted}")))
    assert "ix_repeat_scores_eval_set" in plan


@pytest.mark.parametrize(
    ("strategy", "count", "code", "param"),
    [
        ("analytic", 2, "repeats_not_applicable", "training.repeats"),
        ("replay", 11, "validation_error", "training.repeats"),
        ("replay", 0, "validation_error", "training.repeats"),
    ],
)
def test_repeats_that_could_show_nothing_are_refused_at_the_request(
    world: World, strategy: str, count: int, code: str, param: str
) -> None:
    world.model()
    world.task("one")
    body = {"tasks": ["one"], "strategy": {"name": strategy}, "training": {"repeats": count}}
    answer = world.client.post("/v1/models/triage/updates", json=body)
    assert world.problem(answer) == (422, code)
    assert param.split(".")[-1] in answer.text


def test_analytic_is_taken_without_repeats(world: World) -> None:
    world.model()
    world.task("one")
    assert world.learn("one", strategy={"name": "analytic"})["status"] == "promoted"


def test_further_seeds_are_all_different_and_the_same_every_time() -> None:
    for seed in (0, 1, 2**31 - 1):
        further = repeat_seeds(seed, 9)
        assert len({seed, *further}) == 10
        assert all(0 <= one < 2**31 for one in further)
        assert repeat_seeds(seed, 3) == further[:3]


def test_progress_of_a_single_training_stays_as_it_is() -> None:
    now = Progress("training", 3, 10, 0.5, 7.0, checkpoint_step=2)
    assert Course(1).overall(now) == now


def test_progress_counts_the_steps_of_all_trainings_at_the_pace_of_the_one_that_runs() -> None:
    course = Course(3)
    assert course.overall(Progress("tokenising", 5, 48)) == Progress("tokenising", 5, 48, repeat=1, repeats=3)
    course.overall(Progress("training", 10, 10))
    course.begin(running=2, done=1)
    loading = course.overall(Progress("loading"))
    assert (loading.step, loading.total_steps, loading.checkpoint_step) == (10, 30, 10)
    half = course.overall(Progress("training", 5, 10, eta_seconds=5.0, checkpoint_step=4))
    assert (half.repeat, half.step, half.total_steps, half.checkpoint_step) == (2, 15, 30, 14)
    assert half.eta_seconds == pytest.approx(15.0)  # a second a step, and 15 to go
    assert course.overall(Progress("evaluating", 40, 80)).step == 15


def test_what_auto_chose_is_what_is_repeated() -> None:
    request = TrainRequest("text-classification", None, "auto", (), "", "", "")  # type: ignore[arg-type]  # no base is read
    winner = {"winner": {"strategy": "ewc", "parameters": {"strength": 10.0}}}
    result = TrainResult(1, 1.0, 1, 0, None, 0.0, 0, (), (), {}, "cpu", auto=winner)
    chosen = repeats.chosen(request, result)
    assert (chosen.strategy, chosen.parameters) == ("ewc", {"strength": 10.0})
