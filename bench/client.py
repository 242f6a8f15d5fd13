"""A thin HTTP client of the public API for demos and benches."""

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx

FINISHED = {"promoted", "rejected", "failed", "cancelled", "awaiting_approval"}
Json = dict[str, Any]


class ApiError(RuntimeError):
    """The API answered with a problem."""


class Client:
    """Calls the API with one key. Raises `ApiError` with the problem's detail for any answer of 400 or more."""

    def __init__(self, url: str, api_key: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=60)

    def get(self, path: str, **params: str | int) -> Json:
        """GETs a path under /v1."""
        return self._answer(self._http.get(f"/v1{path}", params=params))

    def post(self, path: str, body: Json | None = None) -> Json:
        """POSTs JSON to a path under /v1."""
        return self._answer(self._http.post(f"/v1{path}", json=body))

    def put(self, path: str, body: Json | None = None) -> Json:
        """PUTs JSON to a path under /v1."""
        return self._answer(self._http.put(f"/v1{path}", json=body))

    def stream_examples(self, model: str, task: str, rows: Iterable[Json], *, on_error: str = "skip") -> Json:
        """POSTs rows as NDJSON without holding them in memory."""
        lines = (json.dumps(row).encode() + b"\n" for row in rows)
        return self.post_ndjson(model, task, lines, on_error=on_error)

    def post_ndjson(
        self, model: str, task: str, body: bytes | Iterable[bytes], *, on_error: str = "abort"
    ) -> Json:
        """POSTs rows that are NDJSON already."""
        return self._answer(
            self._http.post(
                f"/v1/models/{model}/tasks/{task}/examples", content=body, params={"on_error": on_error},
                headers={"Content-Type": "application/x-ndjson"},
            )
        )  # fmt: skip

    def wait(self, update_id: str, on_progress: Callable[[Json], None]) -> Json:
        """Follows an update to its end, calling `on_progress` with every reading; returns the last one."""
        while True:
            update = self.get(f"/updates/{update_id}")
            on_progress(update)
            if update["status"] in FINISHED:
                return update
            time.sleep(0.3)

    @staticmethod
    def _answer(response: httpx.Response) -> Json:
        if response.is_error:
            raise ApiError(
                f"{response.request.method} {response.request.url}: {response.status_code} {response.text}"
            )
        answer: Json = response.json() if response.content else {}
        return answer
