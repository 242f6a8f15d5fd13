"""Many clients at once: what races are made of."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx
from sqlalchemy import text

from service.db import EVERY_TENANT, session_scope

T = TypeVar("T")
Arm = Callable[
    [str], Path
]  # arms failpoints; gives the folder where each leaves a file of its name as it fires


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Makes all calls in the same moment, each on a thread of its own; returns what they gave, in their order."""
    start = threading.Barrier(len(calls))

    def make(call: Callable[[], T]) -> T:
        start.wait(60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(make, calls))


def waiting_for_locks() -> int:
    """How many of the service's transactions wait for another one at this moment."""
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        return int(session.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


def statuses(answers: Sequence[httpx.Response]) -> list[int]:
    """The answers' statuses, after checking that none says that the service broke."""
    found = [answer.status_code for answer in answers]
    assert max(found) < 500, [answer.text for answer in answers if answer.status_code >= 500]
    return found
