"""Sweeps go on, whatever becomes of one of them."""

import threading

import pytest

from service.config import get_settings
from workers import housekeeping


def test_a_mistake_in_one_sweep_is_not_the_end_of_those_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        housekeeping, "get_settings", lambda: get_settings().model_copy(update={"sweep_seconds": 0.001})
    )
    stopping, swept = threading.Event(), []

    def sweep() -> None:
        swept.append(len(swept))
        if len(swept) == 1:
            raise KeyError("a mistake")
        stopping.set()

    housekeeping._sweep_every(0.001, sweep, stopping)
    assert swept == [0, 1]
