"""An update's events as an answer of the type `text/event-stream`, and who gets one."""

import asyncio
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Header, Request
from fastapi.sse import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send
from structlog import get_logger

from service.config import get_settings
from service.content_negotiation import preferred
from service.updates.hub import get_hub
from service.updates.queries import Watched

SEND_SECONDS = 60.0  # a client that has not taken what it was sent by then is given up
log = get_logger(__name__)

EVENT_STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of events, or the stream of them: whichever `Accept` prefers, JSON if it does not say",
        "content": {
            EventSourceResponse.media_type: {
                "schema": {"type": "string"},
                "example": 'retry: 2000\n\nevent: training\ndata: {"id":7,"type":"training","data":{"worker":"w1"},'
                '"at":"2026-01-01T12:00:00Z"}\nid: 7\n\n',
            }
        },
    },
    204: {"description": "`Last-Event-ID` is the event that ended the update: the stream is over"},
}

LastEventId = Annotated[
    int | None,
    Header(
        ge=0, le=2**63 - 1, description="For the stream: `id` of the last event received, to go on after it"
    ),
]


class EventStream(EventSourceResponse):
    """The stream of one update's events from after an event on. Raises `Unavailable` before it begins where it cannot."""

    def __init__(self, watched: Watched, *, api_key: str, after: int) -> None:
        super().__init__(iter(()), headers={"X-Accel-Buffering": "no", "Vary": "Accept"})
        self._watched, self._api_key, self._after = watched, api_key, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Listens for as long as the answer is being sent, however that ends."""
        heartbeat = get_settings().event_stream_heartbeat_seconds

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        with get_hub().listening(self._watched, api_key=self._api_key, after=self._after) as listener:
            async with aclosing(listener.frames(heartbeat_seconds=heartbeat)) as frames:
                self.body_iterator = frames
                try:
                    await super().__call__(scope, receive, send_in_time)
                except TimeoutError:
                    log.info("event_stream_given_up", update=self._watched[1], seconds=SEND_SECONDS)


def wants_stream(request: Request) -> bool:
    """Says whether the request's `Accept` prefers `text/event-stream` to JSON."""
    accept = ",".join(request.headers.getlist("accept"))
    stream = EventSourceResponse.media_type
    return preferred(accept or None, ["application/json", stream]) == stream
