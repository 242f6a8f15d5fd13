"""Rows that many send to one task at once, and an update's cut through them."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.db import session_scope
from service.updates.leases import cancel_claimed
from tests.faults.crowds import at_once, statuses
from tests.faults.rig import Rig
from tests.scenes import World
from workers.preparation import prepare_update

pytestmark = pytest.mark.slow  # two API processes to start

TASK = "/v1/models/triage/tasks/one"


def row(text: str, **fields: object) -> dict[str, object]:
    """A row to store."""
    return {"text": text, "label": "a", **fields}


@pytest.fixture
def task(crowd: World) -> World:
    """A model with two empty tasks."""
    crowd.model()
    for name in ("one", "two"):
        crowd.ok(crowd.client.put(f"/v1/models/triage/tasks/{name}"))
    return crowd


def test_overlapping_bodies_of_many_clients_store_every_row_once_in_batches_of_their_own(
    task: World, clients: list[httpx.Client], two_apis: Rig
) -> None:
    def send(client: httpx.Client, number: int) -> list[httpx.Response]:
        answers = []
        for turn in range(4):
            first = 15 * ((number + turn) % 6)
            rows = [row(f"text {at}", id=f"id {at}") for at in range(first, first + 40)]
            name = "one" if number < 6 else "two"
            answers.append(client.post(f"/v1/models/triage/tasks/{name}/examples", json={"examples": rows}))
        return answers

    calls = [partial(send, client, number) for number, client in enumerate(clients * 4)]
    answers = list(itertools.chain.from_iterable(at_once(calls)))
    assert set(statuses(answers)) == {200}
    told = [answer.json() for answer in answers]
    assert all(body["accepted"] + body["duplicates"] == 40 for body in told)
    batches = {body["batch"]: body["accepted"] for body in told if body["batch"] is not None}
    assert sorted(batches) == list(range(1, len(batches) + 1))
    assert len(batches) == sum(body["accepted"] > 0 for body in told), "a batch of two bodies"
    assert dict(two_apis.sql("SELECT batch, count(*) FROM examples GROUP BY batch")) == batches
    stored = two_apis.sql("SELECT count(*), count(DISTINCT text_hash) FROM examples GROUP BY task_id")
    assert sorted(stored) == [(100, 100), (115, 115)], "what the bodies of each task hold"
    assert two_apis.sql("SELECT text_hash FROM examples GROUP BY 1 HAVING count(DISTINCT split) > 1") == []


def test_corrections_of_the_same_rows_by_many_clients_leave_one_of_each(
    task: World, clients: list[httpx.Client], two_apis: Rig
) -> None:
    def correct(client: httpx.Client, label: str) -> httpx.Response:
        rows = [row(f"text {at}", id=f"id {at}", label=label) for at in range(20)]
        return client.post(f"{TASK}/examples", json={"examples": rows})

    answers = at_once([partial(correct, client, f"label {at}") for at, client in enumerate(clients * 3)])
    assert set(statuses(answers)) == {200}
    told = sorted((answer.json() for answer in answers), key=lambda body: body["batch"])
    assert [(body["accepted"], body["replaced"]) for body in told] == [(20, 0)] + [(20, 20)] * 5
    live = two_apis.sql("SELECT DISTINCT batch, label FROM examples WHERE superseded_batch IS NULL")
    assert [batch for batch, _ in live] == [6], "the last of them stands, whole"
    assert two_apis.sql("SELECT DISTINCT superseded_batch - batch FROM examples WHERE batch < 6") == [(1,)]


def test_an_update_reads_exactly_the_rows_of_its_cut_while_others_are_stored_and_corrected(
    task: World, clients: list[httpx.Client], tmp_path: Path
) -> None:
    task.examples("one", [row("eval", split="eval"), row("corrected 0", id="corrected", split="train")])
    numbers, stop = itertools.count(1), threading.Event()

    def pour(client: httpx.Client) -> list[tuple[int, dict[str, Any]]]:
        poured = []
        while not stop.is_set():
            number = next(numbers)
            rows = [
                row(f"text {number}", split="train"),
                row(f"corrected {number}", id="corrected", split="train"),
            ]
            poured.append((number, World.ok(client.post(f"{TASK}/examples", json={"examples": rows}))))
        return poured

    read: list[tuple[int, set[str]]] = []
    with ThreadPoolExecutor(4) as pool:
        pouring = [pool.submit(pour, client) for client in clients * 2]
        try:
            for turn in range(5):
                update = task.request("one")
                claim = task.claim()
                prepare_update(claim, work=tmp_path / str(turn))
                lines = (tmp_path / str(turn) / "fresh.ndjson").read_text().splitlines()
                texts = [json.loads(line)["text"] for line in lines]
                assert len(texts) == len(set(texts))
                read.append((update["data_cut"], set(texts)))
                with session_scope(tenant="acme", role="worker") as session:
                    assert cancel_claimed(session, claim=claim)
        finally:
            stop.set()
        batches = {body["batch"]: number for thread in pouring for number, body in thread.result()}
    assert len({cut for cut, _ in read}) == 5, "rows came in between"
    for cut, texts in read:
        wanted = {f"text {number}" for batch, number in batches.items() if batch <= cut}
        assert texts == wanted | {f"corrected {batches.get(cut, 0)}"}
