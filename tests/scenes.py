"""Scenes for tests: tenants with models, tasks and updates, set through the public API."""

import importlib
import inspect
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import httpx
from fastapi.testclient import TestClient

ALL_SCOPES = ("read", "ingest", "train", "deploy", "admin")


def make_client(tenant: str, *scopes: str) -> TestClient:
    """Returns a client of the real app with a new key of `tenant`."""
    from service.app import create_app
    from service.db import session_scope
    from service.security import create_key

    with session_scope(tenant=tenant) as session:
        _, key = create_key(session, tenant=tenant, scopes=scopes or ALL_SCOPES, name=f"{tenant}-test")
    client = TestClient(create_app(), raise_server_exceptions=False)
    client.headers["Authorization"] = f"Bearer {key}"
    return client


def docstrings(module: str) -> list[str]:
    """Returns real prose about one subject: the docstrings of a module's or class's functions, each once."""
    found: dict[str, None] = {}
    owner = importlib.import_module(module)
    for name in sorted(dir(owner)):
        text = inspect.getdoc(getattr(owner, name)) or ""
        first = " ".join(text.split("\n\n")[0].split())
        if len(first) >= 30 and not name.startswith("_"):
            found[f"{name}: {first[:300]}"] = None
    return list(found)


class World:
    """Sets scenes through the public API, and plays the worker's part in this process with a real child."""

    TRAINING: ClassVar[dict[str, object]] = {"epochs": 2, "max_length": 32, "batch_size": 8, "seed": 1}

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def model(self, name: str = "triage", **fields: object) -> dict[str, Any]:
        """Creates a model on the real encoder."""
        body = {"name": name, "base_model": "minilm-l6", "task_type": "text-classification", **fields}
        return self.ok(self.client.post("/v1/models", json=body))

    def task(
        self,
        task: str,
        labels: Sequence[str] = ("math", "os"),
        *,
        model: str = "triage",
        train: int = 12,
        held: int = 8,
    ) -> dict[str, Any]:
        """Creates a task whose labels are module names and whose texts are their docstrings."""
        self.ok(self.client.put(f"/v1/models/{model}/tasks/{task}"))
        rows = []
        for label in labels:
            texts = docstrings(label)[: train + held]
            rows += [
                {"text": text, "label": label, "split": "train" if at < train else "eval"}
                for at, text in enumerate(texts)
            ]
        return self.examples(task, rows, model=model)

    def examples(self, task: str, rows: Sequence[object], *, model: str = "triage") -> dict[str, Any]:
        """Adds rows to a task."""
        return self.ok(
            self.client.post(f"/v1/models/{model}/tasks/{task}/examples", json={"examples": list(rows)})
        )

    def request(self, *tasks: str, model: str = "triage", **fields: object) -> dict[str, Any]:
        """Posts an update that is promoted whatever the verdict, unless said otherwise."""
        body = {"tasks": list(tasks), "training": self.TRAINING, "promotion": "always", **fields}
        return self.ok(self.client.post(f"/v1/models/{model}/updates", json=body))

    def work(self, *, stopping: threading.Event | None = None) -> int:
        """Runs queued updates until none can be claimed; returns how many were claimed."""
        count = 0
        while self.work_once(stopping=stopping):
            count += 1
            if stopping is not None and stopping.is_set():
                break
        return count

    def work_once(self, *, stopping: threading.Event | None = None) -> bool:
        """Claims and runs one update; False when there was none."""
        from workers.pipeline import run_update

        claim = self.claim()
        if claim is not None:
            run_update(claim, stopping=stopping or threading.Event())
        return claim is not None

    def dial(self, version: int, *, model: str = "triage", **fields: object) -> dict[str, Any]:
        """Asks for a version's dial, has it scored, and returns it."""
        from workers.tasks import run_next_dial

        where = f"/v1/models/{model}/versions/{version}/dial"
        self.ok(self.client.post(where, json=fields))
        while run_next_dial():
            pass
        return self.ok(self.client.get(where))

    def forecast(self, *tasks: str, model: str = "triage", **fields: object) -> dict[str, Any]:
        """Asks for the forecast of an update, has it made, and returns it."""
        from workers.tasks import run_next_forecast

        body = {"tasks": list(tasks), "training": self.TRAINING, **fields}
        asked = self.ok(self.client.post(f"/v1/models/{model}/updates:forecast", json=body))
        while run_next_forecast():
            pass
        return self.get(f"/forecasts/{asked['id']}")

    def claim(self) -> Any:
        """Claims the next update as a worker does."""
        from service.db import EVERY_TENANT, session_scope
        from service.updates.leases import claim_next

        with session_scope(tenant=EVERY_TENANT, role="worker") as session:
            return claim_next(session, worker="test", lease_seconds=30)

    def learn(self, *tasks: str, model: str = "triage", **fields: object) -> dict[str, Any]:
        """Posts an update, works it off, and returns how it ended."""
        update = self.request(*tasks, model=model, **fields)
        self.work()
        return self.update(update["id"])

    def update(self, update_id: str) -> dict[str, Any]:
        """Reads an update."""
        return self.get(f"/updates/{update_id}")

    def get(self, path: str) -> dict[str, Any]:
        """GETs a path under /v1."""
        return self.ok(self.client.get(f"/v1{path}"))

    def rollback(self, model: str = "triage", **fields: object) -> dict[str, Any]:
        """Rolls the champion back."""
        return self.ok(self.client.post(f"/v1/models/{model}/rollback", json={"reason": "test", **fields}))

    def problem(self, response: httpx.Response) -> tuple[int, str]:
        """Returns status and code of a problem document, after checking its shape."""
        body = response.json()
        assert response.headers["content-type"] == "application/problem+json"
        assert body["status"] == response.status_code
        assert body["error"]["code"] == body["code"]
        return response.status_code, body["code"]

    @staticmethod
    def ok(response: httpx.Response) -> dict[str, Any]:
        """Returns the body of a successful answer."""
        assert response.is_success, response.text
        body: dict[str, Any] = response.json()
        return body
