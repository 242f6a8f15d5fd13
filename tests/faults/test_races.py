"""Cancels, erasures, archiving and purging that meet an update at every moment of its life."""

import itertools
import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from tests.faults.crowds import Arm, at_once, statuses, waiting_for_locks
from tests.faults.rig import Rig, until
from tests.scenes import World

pytestmark = pytest.mark.slow  # API processes to start, updates to train

MODEL = "/v1/models/triage"
QUICK = {"max_steps": 1, "max_length": 16, "batch_size": 8, "seed": 1}
MOMENTS = ("evaluating", "scored", "before_record", "recorded")  # the last points of an update's life


def small(world: World) -> None:
    """A model with a task of a few rows, each of a data subject of its own."""
    world.model()
    world.ok(world.client.put(f"{MODEL}/tasks/one"))
    rows = [
        {"text": f"text number {at}", "label": "ab"[at % 2], "split": split, "subject": f"{split} {at}"}
        for at in range(8)
        for split in ("train", "eval")
    ]
    world.examples("one", [{**row, "text": f"{row['text']} to {row['split']}"} for row in rows])


def test_a_cancel_that_meets_the_end_of_an_update_tells_the_truth(
    crowd: World, clients: list[httpx.Client], two_apis: Rig, armed: Arm
) -> None:
    small(crowd)
    chance = random.Random(4)
    ends = {}
    for moment in MOMENTS:
        reached = armed(f"{moment}=sleep:1") / moment
        update = crowd.request("one", relearn=True, training=QUICK)["id"]
        with ThreadPoolExecutor(1) as pool:
            worker = pool.submit(crowd.work_once)
            until(reached.exists, what=moment)
            threading.Event().wait(chance.uniform(0, 0.9))  # of the second that the worker stays there
            answers = at_once(
                [partial(client.post, f"/v1/updates/{update}/cancel") for client in clients * 2]
            )
            worker.result()
        ends[moment] = assert_told_the_truth(crowd, two_apis, update, answers)
    assert ends["scored"] == "cancelled"
    assert ends["before_record"] == ends["recorded"] == "promoted"


def assert_told_the_truth(world: World, rig: Rig, update: str, answers: list[httpx.Response]) -> str:
    """A cancel was accepted and the update ended without a version, or it was too late and said so; returns the end."""
    ended = world.update(update)
    versions = rig.sql("SELECT number FROM versions WHERE update_id = :update", update=update)
    types = [event["type"] for event in rig_events(world, update)]
    if ended["status"] == "cancelled":
        assert (ended["version"], versions) == (None, [])
        assert types.count("cancel_requested") == 1
        for answer in answers:
            body = answer.json()
            late = (
                answer.status_code == 409
                and body["code"] == "update_finished"
                and "cancelled" in body["detail"]
            )
            assert late or (answer.status_code == 200 and body["cancel_requested"])
        assert answers_of(answers, 200), "an update that nobody's cancel was accepted for"
    else:
        assert ended["status"] == "promoted"
        assert versions == [(ended["version"],)]
        assert "cancel_requested" not in types
        assert {world.problem(answer) for answer in answers} == {(409, "update_finished")}
    assert len([type_ for type_ in types if type_ in ("promoted", "cancelled")]) == 1
    return str(ended["status"])


def rig_events(world: World, update: str) -> list[dict[str, Any]]:
    """The log of an update's life, oldest first."""
    events: list[dict[str, Any]] = world.get(f"/updates/{update}/events")["data"]
    return events


def answers_of(answers: list[httpx.Response], status: int) -> list[httpx.Response]:
    """Those with a status."""
    return [answer for answer in answers if answer.status_code == status]


def test_every_erased_row_was_never_learnt_or_its_answer_names_the_version_that_did(
    crowd: World, clients: list[httpx.Client], two_apis: Rig, armed: Arm
) -> None:
    small(crowd)
    moments = ("prepared", "trained", "before_record", "recorded")
    once = armed(",".join(f"{moment}=sleep:0.7" for moment in moments))
    update = crowd.request("one", training=QUICK)["id"]
    with ThreadPoolExecutor(3) as pool:
        worker = pool.submit(crowd.work)
        answers = [erase(clients[0], 0)]
        for number, moment in enumerate(moments, start=1):
            until((once / moment).exists, what=moment)
            answers += at_once(
                [lambda c=c, at=2 * number - turn: erase(c, at) for turn, c in enumerate(clients)]
            )
            if worker.done():
                break
        worker.result()
    assert set(statuses(answers)) == {200}
    told = [answer.json() for answer in answers if answer.json()["deleted"]]
    ended = crowd.update(update)
    assert (ended["status"], ended["version"], ended["attempt"]) == ("promoted", 1, 1)
    [(learnt,)] = two_apis.sql("SELECT rows FROM version_tasks WHERE version = 1")
    unlearnt = [body for body in told if body["versions"] != [1]]
    assert len(unlearnt) >= 3, "erasures while it trained made it start again without them"
    assert learnt == 8 - len(unlearnt)
    assert len(unlearnt) < len(told), "one came while or after the version was recorded"
    [(buffered,)] = two_apis.sql("SELECT count(*) FROM replay_entries")
    assert buffered == 8 - len(told), "what is erased is rehearsed no more"


def erase(client: httpx.Client, number: int) -> httpx.Response:
    """Erases one data subject, who gave one train row."""
    return client.delete(f"{MODEL}/examples", params={"subject": f"train {number}"})


ADDING = {
    "update": lambda client: client.post(f"{MODEL}/updates", json={"tasks": ["one"]}),
    "examples": lambda client: client.post(
        f"{MODEL}/tasks/one/examples", json={"examples": [{"text": "late", "label": "a", "split": "train"}]}
    ),
}


@pytest.mark.parametrize("name", ADDING)
def test_archiving_waits_for_a_request_that_found_the_model_open(
    crowd: World, clients: list[httpx.Client], two_apis: Rig, name: str
) -> None:
    small(crowd)
    with ThreadPoolExecutor(2) as pool:
        with two_apis.locked(
            "SELECT 1 FROM tasks FOR UPDATE"
        ):  # where the request waits, having seen the model
            adding: Future[httpx.Response] = pool.submit(ADDING[name], clients[0])
            until(lambda: waiting_for_locks() == 1, what="the request")
            archiving = pool.submit(clients[1].delete, MODEL)
            until(lambda: waiting_for_locks() > 1 or archiving.done(), what="the archiving")
        added, archived = adding.result(), archiving.result()
    assert added.is_success, added.text
    if name == "update":
        assert crowd.problem(archived) == (409, "model_busy")
        assert crowd.get("/models/triage")["archived_at"] is None
    else:
        assert archived.status_code == 204, archived.text
        assert crowd.problem(ADDING[name](clients[0])) == (409, "model_archived")


def test_archiving_purging_erasing_and_adding_at_once_break_nothing(
    crowd: World, clients: list[httpx.Client], two_apis: Rig
) -> None:
    small(crowd)
    numbers = itertools.count()
    stop = threading.Event()

    def add(client: httpx.Client) -> list[httpx.Response]:
        answers = []
        while not stop.is_set():
            at = next(numbers)
            row = {
                "text": f"row {at}",
                "label": "a",
                "subject": f"of {at % 5}",
                "split": ("train", "eval")[at % 2],
            }
            answers.append(client.put(f"{MODEL}/tasks/one"))
            answers.append(client.post(f"{MODEL}/tasks/one/examples", json={"examples": [row]}))
            update = client.post(f"{MODEL}/updates", json={"tasks": ["one"]})
            answers.append(update)
            if update.is_success:
                answers.append(client.post(f"/v1/updates/{update.json()['id']}/cancel"))
        return answers

    def take(client: httpx.Client) -> list[httpx.Response]:
        answers = []
        while not stop.is_set():
            at = next(numbers)
            answers.append(client.delete(f"{MODEL}/examples", params={"subject": f"of {at % 5}"}))
            answers.append(client.patch(MODEL, json={"metadata": {"at": at}}))
            answers.append(client.delete(f"{MODEL}/tasks/one"))
        return answers

    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(work, client) for client in clients for work in (add, add, take)]
        ends = []
        try:
            for _ in range(4):
                ends.append(until(lambda: archived(clients[0]), what="the archiving"))
                ends.append(clients[1].post(f"{MODEL}/purge"))
                crowd.model()
        finally:
            stop.set()
        answers = list(itertools.chain.from_iterable(other.result() for other in others))
    assert set(statuses(answers)) <= {200, 201, 202, 204, 404, 409, 422}
    assert statuses(ends) == [204, 200] * 4
    assert (
        two_apis.sql(
            "SELECT 1 FROM models JOIN updates ON model_id = models.id WHERE archived_at IS NOT NULL"
        )
        == []
    )


def archived(client: httpx.Client) -> httpx.Response | None:
    """Tries to archive the model; None while an update keeps it busy."""
    answer = client.delete(MODEL)
    assert answer.status_code in (204, 409), answer.text
    return answer if answer.status_code == 204 else None
