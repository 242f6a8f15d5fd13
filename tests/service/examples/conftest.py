"""A model with one task, and short ways to post rows to it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

Post = Callable[..., Response]
NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def model(client: TestClient) -> str:
    """The URL of a text-classification model with the tasks `refunds` and `delivery`."""
    body = {"name": "support", "base_model": "minilm-l6", "task_type": "text-classification"}
    assert client.post("/v1/models", json=body).status_code == 201
    for task in ("refunds", "delivery"):
        assert client.put(f"/v1/models/support/tasks/{task}").status_code == 201
    return "/v1/models/support"


@pytest.fixture
def post(client: TestClient, model: str) -> Post:
    """Posts rows (objects, or raw lines) as NDJSON to a task."""

    def send(*rows: dict[str, Any] | bytes, task: str = "refunds", **query: str) -> Response:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        url = f"{model}/tasks/{task}/examples"
        return client.post(url, content=b"\n".join(lines), headers=NDJSON, params=query)

    return send


@pytest.fixture
def rows(client: TestClient, model: str) -> Callable[..., list[dict[str, Any]]]:
    """Lists the present rows of a task."""

    def listed(task: str = "refunds", **query: str) -> list[dict[str, Any]]:
        answer = client.get(f"{model}/tasks/{task}/examples", params={"limit": "500", **query})
        assert answer.status_code == 200, answer.text
        data: list[dict[str, Any]] = answer.json()["data"]
        return data

    return listed
