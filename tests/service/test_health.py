"""Readiness while the artifact store hangs."""

import threading

import pytest
from fastapi.testclient import TestClient

from service import health
from service.artifacts import get_store
from service.config import get_settings


class HungStore:
    """Counts how often its check was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.over = threading.Event()

    def check(self) -> None:
        """Does not return."""
        self.begun += 1
        self.over.wait(120)


@pytest.fixture
def hung_store(monkeypatch: pytest.MonkeyPatch) -> HungStore:
    """A store whose check does not end before the test lets it."""
    store = HungStore()
    monkeypatch.setattr(get_store(), "check", store.check)
    monkeypatch.setattr(
        health, "get_settings", lambda: get_settings().model_copy(update={"ready_timeout_seconds": 0.1})
    )
    return store


def test_a_store_that_hangs_holds_one_thread_however_often_it_is_asked_for(
    client: TestClient, hung_store: HungStore
) -> None:
    with client:  # one event loop for all requests, as in a server
        for _ in range(5):
            ready = client.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["checks"]["artifacts"] == "no answer within 0.1 s"
        assert hung_store.begun == 1
        assert client.get("/metrics").status_code == 200
        hung_store.over.set()
