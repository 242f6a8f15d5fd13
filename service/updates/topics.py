"""An update as those who listen to it see it: what was read of it, kept ready to send, and how far each listener has come."""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from service.updates.queries import News
from service.updates.schemas import EventRead, Progress

RETRY_MILLISECONDS = 2000  # what a client waits before it comes again


class Topic:
    """What this process has read of one update since somebody listens to it."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.events: list[bytes] = []  # as they are sent
        self.progress: bytes | None = None
        self.caught_up = False
        self.over = False  # no event will follow those that are here
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """What is set at the next change; ask for it before looking, so that no change falls in between."""
        return self._changed

    def announce(self) -> None:
        """Wakes everybody who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def take(self, news: News | None) -> None:
        """Adds what was read; None: the update is there no more."""
        if news is None:
            self.over = True
            self.announce()
            return
        progress = _progress_frame(news.progress)
        self.caught_up = not news.more
        self.over = news.finished and self.caught_up
        changed = bool(news.events) or progress != self.progress or self.over
        self.ids += [event.id for event in news.events]
        self.events += [_event_frame(event) for event in news.events]
        self.progress = progress
        if changed:
            self.announce()


class Listener:
    """One client of one topic, and how far it has come."""

    def __init__(self, topic: Topic, *, tenant: str, api_key: str, after: int) -> None:
        """`after` is the id of the last event that the client has."""
        self.topic = topic
        self.tenant = tenant
        self.api_key = api_key
        self.dismissed = False
        self._after = after

    def dismiss(self) -> None:
        """Ends the stream at once, in the middle of the update's life."""
        self.dismissed = True
        self.topic.announce()

    async def frames(self, *, heartbeat_seconds: float) -> AsyncGenerator[bytes]:
        """Yields the stream: every event past the client's last, progress as it changes, a comment when nothing else comes."""
        yield format_sse_event(retry=RETRY_MILLISECONDS)
        shown: bytes | None = None
        while True:
            changed, progress = self.topic.changed, self.topic.progress
            while not self.dismissed and (frame := self._next()) is not None:
                yield frame
            if self.dismissed or self.topic.over:
                return
            if progress is not None and progress != shown:
                yield progress
            shown = progress
            try:
                async with asyncio.timeout(heartbeat_seconds):
                    await changed.wait()
            except TimeoutError:
                yield KEEPALIVE_COMMENT

    def _next(self) -> bytes | None:
        at = bisect_right(self.topic.ids, self._after)
        if at == len(self.topic.ids):
            return None
        self._after = self.topic.ids[at]
        return self.topic.events[at]


def _event_frame(event: EventRead) -> bytes:
    return format_sse_event(id=str(event.id), event=event.type, data_str=event.model_dump_json())


def _progress_frame(progress: Progress | None) -> bytes | None:
    # Without an id: a client resumes from the last event, and gets the progress of that moment.
    if progress is None:
        return None
    return format_sse_event(event="progress", data_str=progress.model_dump_json())
