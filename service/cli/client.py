"""A client of the HTTP API that repeats what may be repeated, and nothing else."""

import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote

import httpx

from service.cli.problems import Problem, Unreachable
from service.cli.profiles import Target
from service.version import VERSION

Json = dict[str, Any]
Body = Callable[[], Iterator[bytes]]

PAGE = 500  # the most rows that one answer of the API holds
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
READ_SECONDS = 60.0
LOADING_SECONDS = 1800.0
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
UNAVAILABLE = (502, 503, 504)
REPEATABLE = ("GET", "PUT", "PATCH")


def path(*parts: str | int) -> str:
    """The path below `/v1` that these segments make, each quoted."""
    return "/v1/" + "/".join(quote(str(part), safe=":") for part in parts)


class Api:
    """Calls one service with one key.

    Calls raise `Problem` for an answer of 400 or more, and `Unreachable` where there is none. A lost connection,
    an overloaded service and a rate limit are borne for `patience_seconds`, with growing pauses; `notice` hears of
    every repeat. What may have been carried out is sent again only where that is harmless: reading, putting,
    and creating under an Idempotency-Key.
    """

    def __init__(self, target: Target, *, patience_seconds: float) -> None:
        self.url = target.url.rstrip("/")
        self.patience_seconds = patience_seconds
        self.notice: Callable[[str], None] = lambda _reason: None
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {target.api_key}", "User-Agent": f"palimpsest/{VERSION}"},
            timeout=httpx.Timeout(READ_SECONDS, connect=10.0),
            # Loading the certificates takes a tenth of a second, of no use to http; no redirect is followed.
            verify=self.url.lower().startswith("https:"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, where: str, **query: object) -> Json:
        """GETs a document; None in the query is left out."""
        return self._call("GET", where, params=_given(query))

    def pages(self, where: str, *, limit: int, **query: object) -> Json:
        """GETs a list as one page of up to `limit` rows, however many pages of the API that takes."""
        rows: list[Json] = []
        cursor = None
        while True:
            size = min(PAGE, limit - len(rows))
            page = self.get(where, limit=size, cursor=cursor, **query)
            rows += page["data"]
            if not page["has_more"] or len(rows) >= limit:
                return {**page, "data": rows}
            cursor = page["next_cursor"]

    def create(self, where: str, body: Json, *, idempotency_key: str | None = None) -> Json:
        """POSTs what is carried out once under its Idempotency-Key, however often it has to be sent."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._call("POST", where, repeatable=True, json=body, headers=headers)

    def ask(self, where: str, body: Json) -> Json:
        """POSTs a question, which changes nothing."""
        return self._call("POST", where, repeatable=True, json=body)

    def act(self, where: str, body: Json | None = None) -> Json:
        """POSTs an act; it is not sent again once it may have arrived."""
        return self._call("POST", where, json=body)

    def put(self, where: str, body: Json) -> Json:
        """PUTs a document."""
        return self._call("PUT", where, json=body)

    def patch(self, where: str, body: Json) -> Json:
        """PATCHes a document."""
        return self._call("PATCH", where, json=body)

    def delete(self, where: str, **query: object) -> Json:
        """DELETEs; the answer is empty where the API says no more than that it is done."""
        return self._call("DELETE", where, params=_given(query))

    def stream(
        self, where: str, body: Body, *, media_type: str, idempotency_key: str | None = None, **query: object
    ) -> Json:
        """POSTs a body piece by piece; it is opened anew for every attempt, under one Idempotency-Key."""
        headers = {"Content-Type": media_type, "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._call(
            "POST", where, repeatable=True, stream=body, headers=headers, params=_given(query),
            timeout=httpx.Timeout(LOADING_SECONDS, connect=10.0),  # a long body is checked and loaded before it is answered
        )  # fmt: skip

    @contextmanager
    def download(self, where: str, **query: object) -> Iterator[httpx.Response]:
        """GETs a body that is read piece by piece; a connection lost meanwhile raises `Unreachable`."""
        request = self._http.build_request("GET", where, params=_given(query))
        response = self._persist(lambda: self._http.send(request, stream=True), repeatable=True)
        try:
            if not response.is_success:
                response.read()
                _answer(response)
            yield response
        except httpx.TransportError as error:
            raise Unreachable(f"The connection to {self.url} was lost: {_reason(error)}") from None
        finally:
            response.close()

    def _call(
        self, method: str, where: str, *, repeatable: bool | None = None, stream: Body | None = None, **options: Any
    ) -> Json:  # fmt: skip
        def send() -> httpx.Response:
            return self._http.request(method, where, content=stream and stream(), **options)

        again = method in REPEATABLE if repeatable is None else repeatable
        return _answer(self._persist(send, repeatable=again))

    def _persist(self, send: Callable[[], httpx.Response], *, repeatable: bool) -> httpx.Response:
        """Sends until there is an answer that a repeat would not mend, or patience ends."""
        deadline = time.monotonic() + self.patience_seconds
        longest = FIRST_PAUSE_SECONDS
        while True:
            pause = random.uniform(longest / 2, longest)  # noqa: S311  # so that clients do not come in step
            response = None
            try:
                response = send()
                if not _worth_repeating(response, repeatable=repeatable):
                    return response
                pause = max(pause, _retry_after(response))
                failure = Unreachable(f"{self.url} is not available (HTTP {response.status_code})")
            except httpx.TransportError as error:
                failure = self._lost(error, repeatable=repeatable)
                if not repeatable and not isinstance(error, NEVER_SENT):
                    raise failure from None
            if time.monotonic() + pause > deadline:
                if response is not None:
                    return response
                raise failure from None
            if response is not None:
                response.close()
            self.notice(str(failure))
            time.sleep(pause)
            longest = min(2 * longest, LONGEST_PAUSE_SECONDS)

    def _lost(self, error: httpx.TransportError, *, repeatable: bool) -> Unreachable:
        if isinstance(error, NEVER_SENT):
            return Unreachable(f"The service at {self.url} cannot be reached: {_reason(error)}")
        unsure = (
            "" if repeatable else " It may have been carried out all the same: look before you repeat it."
        )
        return Unreachable(f"The connection to {self.url} was lost: {_reason(error)}.{unsure}")


def _given(query: Json) -> Json:
    return {name: value for name, value in query.items() if value is not None}


def _worth_repeating(response: httpx.Response, *, repeatable: bool) -> bool:
    if response.status_code == 429:  # refused before anything was done
        return True
    in_flight = response.status_code == 409 and b"idempotency_key_in_flight" in response.read()
    return repeatable and (in_flight or response.status_code in UNAVAILABLE)


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _answer(response: httpx.Response) -> Json:
    document = _document(response)
    if response.status_code in UNAVAILABLE:
        raise Unreachable(
            (document or {}).get("detail") or f"HTTP {response.status_code} from {response.url.host}"
        )
    if document is None:
        raise Unreachable(
            f"{response.url.host} answered HTTP {response.status_code} and no JSON; is this the address of Palimpsest?"
        )
    if not response.is_success:
        raise Problem(document, status=response.status_code)
    return document


def _document(response: httpx.Response) -> Json | None:
    if response.is_success and not response.content:
        return {}
    try:
        document = response.json()
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__
