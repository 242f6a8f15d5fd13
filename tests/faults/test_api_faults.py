"""Faults of an API process: a request that was cut off is sent again to another process, and is done once."""

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.faults.rig import Rig, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def creating_requests(name: str, *, roll_back_to: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """One request of every kind that creates something, each told apart by the name."""
    row = {"id": f"row-{name}", "text": f"the text of {name}", "label": "os", "split": "train"}
    return {
        "examples": ("/v1/models/triage/tasks/one/examples", {"examples": [row]}),
        "updates": ("/v1/models/triage/updates", {"tasks": ["one"], "metadata": {"name": name}}),
        "rollback": ("/v1/models/triage/rollback", {"to": roll_back_to, "reason": name}),
    }


EFFECTS = {
    "examples": "SELECT count(*) FROM examples WHERE external_id = 'row-' || :name",
    "updates": "SELECT count(*) FROM updates WHERE metadata ->> 'name' = :name",
    "rollback": "SELECT count(*) FROM alias_moves WHERE reason = :name",
}


def test_a_request_whose_api_was_killed_around_its_commit_is_done_once_when_sent_again(rig: Rig) -> None:
    survivor, world = rig.world.client, rig.world
    worker = rig.start_worker()
    rig.learnable("one")
    assert rig.ended(world.request("one")["id"])["version"] == 1
    worker.end()
    for point, champion in (("before_request_commit", 0), ("after_request_commit", 1)):
        for kind, (path, body) in creating_requests(point, roll_back_to=champion).items():
            headers = {"Idempotency-Key": f"{kind}-{point}"}
            doomed = rig.start_api(PALIMPSEST_FAILPOINTS=f"{point}=kill")
            with pytest.raises(httpx.TransportError):
                doomed.post(path, json=body, headers=headers)
            assert rig.api.gone() == -signal.SIGKILL
            done = rig.sql(EFFECTS[kind], name=point)[0].count
            assert done == (1 if point == "after_request_commit" else 0)

            again = until(lambda p=path, b=body, h=headers: answered(survivor, p, b, h), what="an answer")
            assert again.headers.get("Idempotent-Replayed") == ("true" if done else None)
            third = survivor.post(path, json=body, headers=headers)
            assert (third.headers["Idempotent-Replayed"], third.json()) == ("true", again.json())
            assert rig.sql(EFFECTS[kind], name=point)[0].count == 1
    rig.check_ledger()


def answered(
    client: httpx.Client, path: str, body: dict[str, Any], headers: dict[str, str]
) -> httpx.Response | None:
    """The answer, once the database has noticed that the first caller is dead."""
    answer = client.post(path, json=body, headers=headers)
    if answer.status_code == 409 and answer.json()["code"] == "idempotency_key_in_flight":
        return None
    assert answer.is_success, answer.text
    return answer


class Upload:
    """An upload of eight large rows that comes to its end when it is told to."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.under_way, self.may_end = threading.Event(), threading.Event()

    def send(self, client: httpx.Client) -> httpx.Response:
        """Sends it; returns the answer."""
        return client.post(
            "/v1/models/triage/tasks/one/examples",
            content=self._body(),
            headers={"Content-Type": "application/x-ndjson"},
        )

    def _body(self) -> Iterator[bytes]:
        for number in range(8):  # more than sockets hold: what comes after it was taken by the server
            text = f"{self.label} {number} ".ljust(500_000, ".")
            yield json.dumps({"text": text, "label": self.label, "split": "train"}).encode() + b"\n"
        self.under_way.set()
        self.may_end.wait(60)


def test_an_api_told_to_stop_finishes_what_it_can_and_is_gone_in_seconds(rig: Rig) -> None:
    client, stopping = rig.world.client, rig.api
    rig.world.model()
    rig.world.ok(client.put("/v1/models/triage/tasks/one"))
    finished, endless = Upload("finished"), Upload("endless")
    with ThreadPoolExecutor(2) as callers:
        try:
            answer, no_answer = (callers.submit(upload.send, client) for upload in (finished, endless))
            assert finished.under_way.wait(30)
            assert endless.under_way.wait(30)
            stopping.send(signal.SIGTERM)
            until(lambda: refuses(client.base_url), what="the API to take no more requests")
            finished.may_end.set()
            assert answer.result(30).json()["accepted"] == 8
            assert stopping.gone(seconds=40) in (0, -signal.SIGTERM)
            endless.may_end.set()
            with pytest.raises(httpx.TransportError):
                no_answer.result(30)
        finally:
            finished.may_end.set()
            endless.may_end.set()
    labels = rig.sql("SELECT label, count(*) FROM examples GROUP BY label")
    assert [tuple(row) for row in labels] == [("finished", 8)]


def refuses(address: httpx.URL) -> bool:
    """Whether nobody listens there any more."""
    try:
        httpx.get(address.join("/livez"), timeout=5)
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        return True
    return False


def test_the_log_tells_of_every_request_and_names_no_data_subject(rig: Rig) -> None:
    rig.world.model()
    client = rig.clients[0]
    erased = client.delete(
        "/v1/models/triage/examples", params={"subject": "zephyrine"}, headers={"X-Request-Id": "erasing-1"}
    )
    assert erased.status_code == 200
    line = until(
        lambda: next((json.loads(at) for at in rig.api.log.splitlines() if "erasing-1" in at), None),
        what="the request's line",
    )
    told = {name: line[name] for name in ("event", "method", "path", "status", "tenant", "client")}
    assert told == {
        "event": "request", "method": "DELETE", "path": "/v1/models/triage/examples", "status": 200, "tenant": "acme",
        "client": "127.0.0.1",
    }  # fmt: skip
    assert "zephyrine" not in rig.api.log
    assert "/livez" not in rig.api.log
