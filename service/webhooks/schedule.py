"""When a delivery is tried again, and when a webhook is given up; pure."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

# Pauses after the first, second, … failed try; the one after the last pause is the last.
PAUSES_SECONDS = (5, 30, 120, 600, 3600, 10_800, 28_800)
MAX_TRIES = len(PAUSES_SECONDS) + 1
JITTER = 0.2  # of the pause, both ways: receivers that come back are not met by everything at once
LONGEST_RETRY_AFTER_SECONDS = 3600.0
DISABLE_AFTER = timedelta(days=5)


def pause_seconds(*, tries: int, retry_after_seconds: float | None, chance: float) -> float | None:
    """The seconds from the failed try number `tries` (from 1) to the next one, or None where it was the last.

    `retry_after_seconds` is what the receiver asked for: waited for, up to an hour. `chance` in [0, 1) places the pause
    within its jitter.
    """
    if tries >= MAX_TRIES:
        return None
    pause = PAUSES_SECONDS[tries - 1] * (1 - JITTER + 2 * JITTER * chance)
    return max(pause, min(retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS))


def retry_after_seconds(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """What `Retry-After` asks for, as seconds or as a date (RFC 9110); None where it says nothing that can be read."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # years and time zones of any length
        return None
    return max((moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds(), 0.0)


def is_given_up(*, failing_since: datetime, now: datetime) -> bool:
    """Whether a webhook that has just failed for good, and to which nothing was delivered since, is to be switched off."""
    return now - failing_since >= DISABLE_AFTER
