"""What an update learns from and what its report shows: odd data, through a real child and a real database."""

import pytest

from tests.scenes import World, docstrings

SUBJECTS = (("one", ("math", "os")), ("two", ("random", "socket")))


def test_nothing_left_to_learn_is_said_at_the_request_or_at_the_start(world: World) -> None:
    world.model()
    world.task("one")
    posted = [world.request("one")["id"], world.request("one")["id"]]
    world.work()
    second = world.update(posted[1])
    assert (second["status"], second["error"]["code"]) == ("failed", "nothing_to_learn")
    again = world.client.post("/v1/models/triage/updates", json={"tasks": ["one"]})
    assert world.problem(again) == (422, "nothing_to_learn")
    assert world.learn("one", relearn=True)["version"] == 2


def test_a_regressed_example_is_shown_with_its_text_and_both_answers(world: World) -> None:
    world.model()
    for task, labels in SUBJECTS:
        world.task(task, labels)
    world.learn("one")
    world.learn("two", strategy={"name": "sequential"}, training={**World.TRAINING, "epochs": 12})
    report = world.get("/models/triage/versions/2/report")
    old = next(task for task in report["tasks"] if task["role"] == "old")
    flips = world.get("/models/triage/versions/2/flips?kind=negative")
    assert (flips["before"], flips["after"]) == (1, 2)
    assert len(flips["data"]) == old["flips"]["negative"] > 0
    texts = {text for label in ("math", "os") for text in docstrings(label)}
    for flip in flips["data"]:
        assert flip["content"]["text"] in texts
        assert flip["before"]["label"] == flip["expected"] != flip["after"]["label"]


@pytest.mark.slow
def test_a_report_stays_coherent_when_the_eval_set_grows(world: World) -> None:
    world.model()
    for task, labels in SUBJECTS:
        world.task(task, labels)
    world.learn("one")
    world.examples(
        "one", [{"text": f"no such thing {n}", "label": "mahth", "split": "eval"} for n in range(3)]
    )
    world.learn("two")
    old = next(
        task for task in world.get("/models/triage/versions/2/report")["tasks"] if task["task"] == "one"
    )
    assert old["eval_size"] == 19
    assert old["delta"] == pytest.approx(old["score"] - old["parent_score"])
    column = [row[0] for row in world.get("/models/triage/reports/forgetting")["matrix"]]
    assert old["forgetting"] == pytest.approx(column[1] - column[2])
    new = next(
        task for task in world.get("/models/triage/versions/2/report")["tasks"] if task["task"] == "two"
    )
    assert (new["best_score"], new["forgetting"]) == (None, None)


@pytest.mark.slow
def test_a_task_whose_eval_rows_were_all_erased_leaves_the_gate_undecided(world: World) -> None:
    world.model(gate={"max_regression": 0.9})
    for task, labels in SUBJECTS:
        world.task(task, labels)
    world.learn("one")
    for row in world.get("/models/triage/tasks/one/examples?split=eval&limit=100")["data"]:
        assert world.client.delete(f"/v1/models/triage/tasks/one/examples/{row['id']}").status_code == 204
    held = world.learn("two", promotion="gate")
    assert (held["status"], held["verdict"]["decision"]) == ("awaiting_approval", "inconclusive")


@pytest.mark.slow
def test_a_buffer_smaller_than_its_strata_is_warned_of_and_works(world: World) -> None:
    world.model(replay={"capacity": 1})
    world.task("one", ("math", "os"))
    world.learn("one")
    world.task("two", ("random", "socket"))
    update = world.learn("two", strategy={"name": "replay"})
    assert update["status"] == "promoted"
    assert any("holds 1 examples but version 1 has learnt 2 kinds" in text for text in update["warnings"])
    assert world.get("/models/triage/versions/2")["statistics"]["replay_rows"] == 1


@pytest.mark.slow
def test_a_task_of_one_class_is_learnt_and_shown_for_what_it_is(world: World) -> None:
    world.model()
    world.task("one", ("math",))
    update = world.learn("one")
    assert update["status"] == "promoted"
    assert world.get("/models/triage/versions/1")["labels"] == ["math"]
    world.task("two", ("os",))
    assert world.learn("two", strategy={"name": "derpp"})["status"] == "promoted"
