"""Calls that are sent again until they are answered: a client that a broken service must not confuse."""

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import httpx

PAUSE_SECONDS = 0.3
PATIENCE_SECONDS = 180.0
AGAIN = {"idempotency_key_in_flight"}  # the only refusal that means: ask again

Json = dict[str, Any]


class Refused(RuntimeError):
    """The API refused a call that it should have taken."""


class Unanswered(RuntimeError):
    """A call was sent again and again, and never answered."""


class Answers:
    """How often each answer came, over all callers; a call that broke off counts as `no answer`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, answer: str) -> None:
        """Adds one."""
        with self._lock:
            self._counts[answer] += 1

    def as_dict(self) -> dict[str, int]:
        """The counts so far, most frequent first."""
        with self._lock:
            return dict(self._counts.most_common())


class Caller:
    """One client with one key. Every call names what would make a second one harmless, or is harmless by itself."""

    def __init__(self, url: str, api_key: str, answers: Answers) -> None:
        self._http = httpx.Client(
            base_url=f"{url}/v1", headers={"Authorization": f"Bearer {api_key}"}, timeout=30
        )
        self._answers = answers

    def get(self, path: str) -> Json:
        """GETs a path under /v1."""
        return self.call("GET", path) or {}

    def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        key: str | None = None,
        params: Mapping[str, str] | None = None,
        may_refuse: Collection[str] = (),
    ) -> Json | None:
        """Sends a call until it is answered; returns the answer, or None for a refusal whose code is in `may_refuse`.

        `key` is its Idempotency-Key. Raises `Refused` for any other refusal, `Unanswered` after three minutes.
        """
        headers = {"Idempotency-Key": key} if key else {}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            response = self._send(method, path, json=body, headers=headers, params=params)
            if response is not None and not self._is_passing(response):
                return _read(response, may_refuse)
            time.sleep(PAUSE_SECONDS)
        raise Unanswered(f"{method} {path} was not answered for {PATIENCE_SECONDS:.0f} s")

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError:
            self._answers.count("no answer")
            return None
        self._answers.count(str(response.status_code))
        return response

    @staticmethod
    def _is_passing(response: httpx.Response) -> bool:
        if response.status_code in (429, 502, 503, 504):  # any other of 500 and above is a finding
            return True
        return response.status_code == 409 and response.json().get("code") in AGAIN


def _read(response: httpx.Response, may_refuse: Collection[str]) -> Json | None:
    answer: Json = response.json() if response.content else {}
    if not response.is_error:
        return answer
    if answer.get("code") in may_refuse:
        return None
    raise Refused(f"{response.request.method} {response.request.url}: {response.status_code} {answer}")
