"""When failed deliveries are tried again; pure."""

from datetime import UTC, datetime, timedelta

import pytest

from service.webhooks.schedule import (
    DISABLE_AFTER,
    MAX_TRIES,
    PAUSES_SECONDS,
    is_given_up,
    pause_seconds,
    retry_after_seconds,
)

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def test_pauses_grow_within_their_jitter_and_the_eighth_try_is_the_last() -> None:
    for tries, pause in enumerate(PAUSES_SECONDS, start=1):
        shortest, longest = (
            pause_seconds(tries=tries, retry_after_seconds=None, chance=chance) for chance in (0.0, 1.0)
        )
        assert (shortest, longest) == (pytest.approx(0.8 * pause), pytest.approx(1.2 * pause))
    assert pause_seconds(tries=MAX_TRIES, retry_after_seconds=60, chance=0.5) is None
    assert MAX_TRIES == 8


@pytest.mark.parametrize(("asked", "pause"), [(None, 5), (1, 5), (90, 90), (86_400, 3600)])
def test_a_receiver_may_ask_for_a_longer_pause_up_to_an_hour(asked: float | None, pause: float) -> None:
    assert pause_seconds(tries=1, retry_after_seconds=asked, chance=0.5) == pytest.approx(pause)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0), (" 7 ", 7.0), ("Tue, 01 Jan 2030 12:01:30 GMT", 90.0), ("Tue, 01 Jan 2030 11:00:00 GMT", 0.0),
        ("soon", None), ("", None), ("-5", None), ("1e9", None), ("٣", None), ("9" * 400, 999_999_999.0),
        ("Tue, 01 Jan 99999999999999999999 00:00:00 GMT", None), (f"Tue, 01 Jan 2030 12:00:00 +{'9' * 40}", None),
    ],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_as_a_date_and_else_ignored(
    value: str, seconds: float | None
) -> None:
    assert retry_after_seconds({"retry-after": value}, now=NOW) == seconds
    assert retry_after_seconds({}, now=NOW) is None


def test_a_webhook_is_given_up_after_days_without_a_success() -> None:
    assert not is_given_up(failing_since=NOW - DISABLE_AFTER + timedelta(seconds=1), now=NOW)
    assert is_given_up(failing_since=NOW - DISABLE_AFTER, now=NOW)
