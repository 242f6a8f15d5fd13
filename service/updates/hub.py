"""Whoever listens to updates, and the one reader that looks for all of them.

A listener holds no thread, no connection and no turn. While anybody listens, the process asks the database once a second
for what is new of every update listened to, and once whose keys still stand; what it finds is kept ready to send, once for all.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache, partial

from anyio import to_thread
from prometheus_client import Gauge
from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from service.config import get_settings
from service.db import EVERY_TENANT, session_scope
from service.errors import TooManyRequests, Unavailable
from service.metrics.http import registry
from service.security import valid_keys
from service.updates.queries import News, Watched, get_news
from service.updates.topics import Listener, Topic

LOOK_SECONDS = 1.0
log = get_logger(__name__)

open_streams = Gauge(
    "palimpsest_event_streams", "Streams of events that are being listened to", registry=registry
)


class Hub:
    """The listeners of one event loop, and their reader, which runs while there are any."""

    def __init__(self) -> None:
        self._topics: dict[Watched, Topic] = {}
        self._listeners: set[Listener] = set()
        self._reader: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()  # somebody waits for a topic that was not read yet
        self._closed = False

    @contextmanager
    def listening(self, watched: Watched, *, api_key: str, after: int) -> Iterator[Listener]:
        """Admits a listener, whose key and right to see the update were checked.

        Raises `Unavailable` when the process has as many as it may, or is stopping, and `TooManyRequests` when the tenant has.
        """
        self._require_room(tenant=watched[0])
        topic = self._topics.setdefault(watched, Topic())
        listener = Listener(topic, tenant=watched[0], api_key=api_key, after=after)
        self._listeners.add(listener)
        open_streams.inc()
        self._wake_reader()
        try:
            yield listener
        finally:
            open_streams.dec()
            self._listeners.discard(listener)
            if not any(other.topic is topic for other in self._listeners):
                del self._topics[watched]

    def close(self) -> None:
        """Ends every stream now and admits no more."""
        self._closed = True
        if self._reader is not None:
            self._reader.cancel()
        self._dismiss_all()

    def _require_room(self, *, tenant: str) -> None:
        settings = get_settings()
        most, most_of_one = settings.max_event_streams, settings.max_event_streams_per_tenant
        if self._closed or len(self._listeners) >= most:
            why = "This process is stopping." if self._closed else f"{most} streams are open, as many as may."
            raise Unavailable(
                f"{why} Come again in a moment, or ask for application/json.",
                code="too_many_streams", param="Accept", headers={"Retry-After": "2"},
            )  # fmt: skip
        if sum(listener.tenant == tenant for listener in self._listeners) >= most_of_one:
            raise TooManyRequests(
                f"{most_of_one} streams of this tenant are open, as many as may. Close one, or ask for application/json.",
                code="too_many_streams", param="Accept", headers={"Retry-After": "2"},
            )  # fmt: skip

    def _dismiss_all(self) -> None:
        for listener in self._listeners:
            listener.dismiss()

    def _wake_reader(self) -> None:
        self._wanted.set()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            await self._follow()
        finally:  # without a reader nobody would hear of anything again
            self._dismiss_all()

    async def _follow(self) -> None:
        """Looks at everything once a second, and between times at what nobody has read yet."""
        clock = asyncio.get_running_loop().time
        due, silent = clock(), False
        while self._listeners:
            self._wanted.clear()
            everything = clock() >= due
            if everything:
                due = clock() + LOOK_SECONDS
            try:
                await self._look(everything=everything)
                silent = False
            except SQLAlchemyError as error:
                # A pause and no end: streams that ended would all come back at once, upon a server that is just getting up.
                if not silent:
                    log.warning("event_streams_wait_for_database", error=type(error).__name__)
                silent = True
                await asyncio.sleep(LOOK_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wanted.wait()

    async def _look(self, *, everything: bool) -> None:
        if everything:
            await self._dismiss_revoked()
        topics = {
            watched: topic for watched, topic in self._topics.items() if everything or not topic.caught_up
        }
        if not topics:
            return
        after = {watched: topic.ids[-1] if topic.ids else 0 for watched, topic in topics.items()}
        news = await to_thread.run_sync(partial(_read_news, after), abandon_on_cancel=True)
        for watched, topic in topics.items():
            topic.take(news.get(watched))
            if not topic.caught_up and not topic.over:
                self._wanted.set()

    async def _dismiss_revoked(self) -> None:
        asked = {listener.api_key for listener in self._listeners}
        valid = await to_thread.run_sync(partial(valid_keys, asked), abandon_on_cancel=True)
        for listener in self._listeners:
            if listener.api_key in asked - valid:
                listener.dismiss()


@lru_cache
def _hub_of(_loop: asyncio.AbstractEventLoop) -> Hub:
    return Hub()


def get_hub() -> Hub:
    """The hub of the running event loop."""
    return _hub_of(asyncio.get_running_loop())


def _read_news(after: Mapping[Watched, int]) -> dict[Watched, News]:
    # Across tenants at once, which the app's own role cannot do. Each listener was let in to one update by its own session.
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        return get_news(session, after=after)
