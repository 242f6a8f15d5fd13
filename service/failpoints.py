"""Failpoints: named places where a process dies, freezes, waits or fails on purpose, for tests of faults.

`PALIMPSEST_FAILPOINTS="artifact_stored=kill, recorded=sleep:5"` arms two of them. Where `PALIMPSEST_FAILPOINTS_ONCE` names
a folder, each fires once in the life of that folder, whichever process gets there first. Nothing is armed by default.
"""

import os
import signal
import time
from collections.abc import Mapping
from functools import lru_cache

from service.config import get_settings

POINTS = frozenset(
    {
        # the worker, in the order of an update's life
        "before_claim",  # the claim is written, not committed
        "claimed",  # it is committed, nothing is done yet
        "prepared",  # rows and parent lie in the work folder
        "checkpoint_written",  # the child has said so
        "trained",  # the child has answered, nothing is stored
        "repeat_recorded",  # of an update with repeats: one more seed's scores are committed
        "artifact_partial",  # written beside its place, not yet renamed
        "artifact_stored",  # renamed; no row refers to it
        "before_evaluating",  # the state is written, not committed
        "evaluating",  # it is committed, nothing is scored
        "scored",  # every score is made, none is stored
        "before_record",  # all rows of the version are written, not committed
        "recorded",  # version, verdict and promotion are committed
        "dial_point_recorded",  # of a dial: one more point is committed
        "forecast_probe_kept",  # of a forecast: one more probe is committed
        # whoever sends to webhooks
        "webhook_sent",  # the receiver has answered, nothing is recorded
        # the API
        "before_request_commit",
        "after_request_commit",
    }
)


class InjectedFault(OSError):
    """A failpoint was told to fail."""


def reach(point: str) -> None:
    """Does what is armed at `point`: `kill`, `stop` (SIGSTOP), `sleep:SECONDS` or `fail`; nothing where nothing is."""
    action = _armed().get(point)
    if action is None or not _first_time(point):
        return
    verb, _, argument = action.partition(":")
    match verb:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(float(argument))
        case "fail":
            raise InjectedFault(f"the failpoint {point} was told to fail")


@lru_cache
def _armed() -> Mapping[str, str]:
    parts = (part.partition("=") for part in get_settings().failpoints.split(",") if part.strip())
    armed = {point.strip(): action.strip() for point, _, action in parts}
    verbs = {"kill", "stop", "sleep", "fail"}
    for point, action in armed.items():
        if point not in POINTS or action.partition(":")[0] not in verbs:
            raise ValueError(
                f"PALIMPSEST_FAILPOINTS: {point}={action}: the points are {', '.join(sorted(POINTS))}; "
                f"the actions {', '.join(sorted(verbs))}"
            )
    return armed


def _first_time(point: str) -> bool:
    folder = get_settings().failpoints_once
    if folder is None:
        return True
    try:
        (folder / point).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
