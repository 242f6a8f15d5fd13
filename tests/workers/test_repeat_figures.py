"""What an update that measures its own noise leaves and shows: real trainings with several seeds, in the real child."""

import statistics
from collections.abc import Iterator

import pytest
from sqlalchemy import select, text

from service.artifacts import get_store
from service.db import engine_for, session_scope
from service.models import RepeatScore
from tests.conftest import emptied
from tests.scenes import World, make_client
from tests.service.web.visitors import Browser
from tests.workers.repeated import SECOND, SEED, THIRD, THREE, stored, weights
from workers import repeats
from workers.repeats import Course, repeat_seeds
from workers.training.contract import Progress, TrainRequest, TrainResult


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
