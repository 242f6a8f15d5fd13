"""A client of an update's event stream, which reads it field by field."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx


class Stream:
    """A stream as a client reads it, field by field."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.comments: list[str] = []
        self._lines = response.iter_lines() if response.status_code == 200 else iter(())

    def messages(self) -> Iterator[dict[str, str]]:
        """Yields messages until the stream ends; comments are put aside."""
        message: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments.append(line)
                yield {"comment": line}
            elif line:
                name, value = line.split(": ", 1)
                message[name] = value
            elif message:
                yield message
                message = {}

    def read(self, wanted: str) -> dict[str, str]:
        """Reads on to the next message of a type."""
        for message in self.messages():
            if message.get("event") == wanted or wanted in message:
                return message
        raise AssertionError(f"the stream ended before '{wanted}'")

    def rest(self) -> list[dict[str, str]]:
        """Reads to the end; returns the events, progress and comments left out."""
        return [message for message in self.messages() if "id" in message]


@contextmanager
def listen(
    client: httpx.Client, update_id: str, *, after: int | None = None, **headers: str
) -> Iterator[Stream]:
    """Opens the stream of an update, where `after` is given behind that event."""
    asked = {"Accept": "text/event-stream", **headers}
    if after is not None:
        asked["Last-Event-ID"] = str(after)
    with client.stream("GET", f"/v1/updates/{update_id}/events", headers=asked) as response:
        yield Stream(response)
