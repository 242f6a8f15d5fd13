"""The lease goes on for as long as its holder shows signs of life, and no longer."""

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from service.artifacts import CHUNK, ArtifactStore
from service.config import get_settings
from service.db import session_scope
from service.signs_of_life import show_life_meanwhile
from service.updates.leases import Claim, LeaseState
from workers import lease as leases
from workers.lease import Lease, LeaseLost

CLAIM = Claim("acme", "upd_1", "mdl_1", fence=1, attempt=1, request_id=None, rescore=False)
TIMEOUT_SECONDS = 1.5
LONGER_SECONDS = 2 * TIMEOUT_SECONDS
STEP_SECONDS = 0.1
STEPS = int(LONGER_SECONDS / STEP_SECONDS)


@pytest.fixture
def renewals(database: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When leases were renewed, while holders may be silent for `TIMEOUT_SECONDS` alone."""
    settings = get_settings().model_copy(
        update={"worker_timeout_seconds": TIMEOUT_SECONDS, "lease_seconds": 0.3, "database_url": database}
    )
    monkeypatch.setattr(leases, "get_settings", lambda: settings)
    return []


@pytest.fixture
def lease(renewals: list[float]) -> Lease:
    def renew(_session: object, **_rest: object) -> LeaseState:
        renewals.append(time.monotonic())
        return LeaseState(held=True, cancel_requested=False)

    return Lease(CLAIM, stopping=threading.Event(), renew=renew)


def copying(folder: Path) -> None:
    """Stores an artifact that is read slowly, chunk by chunk."""

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            time.sleep(STEP_SECONDS)
            return super().read(size)

    ArtifactStore(folder.as_uri()).put_tar(Slow(bytes(STEPS // 2 * CHUNK)))  # read to be hashed, and again


def asking(_: Path) -> None:
    """Asks the database again and again."""
    for _step in range(STEPS):
        with session_scope(tenant="acme", role="worker") as session:
            session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": STEP_SECONDS})


def waiting_for_a_library(_: Path) -> None:
    """Is in a call that may take long and ends by itself."""
    with show_life_meanwhile():
        time.sleep(LONGER_SECONDS)


@pytest.mark.parametrize("work", [copying, asking, waiting_for_a_library])
def test_work_that_goes_on_keeps_the_lease_however_long_it_takes(
    lease: Lease, renewals: list[float], tmp_path: Path, work: Callable[[Path], None]
) -> None:
    with lease:
        began = time.monotonic()
        work(tmp_path)
        assert time.monotonic() - began > TIMEOUT_SECONDS
        lease.check()
    assert renewals[-1] - began > TIMEOUT_SECONDS


def test_a_holder_that_hangs_loses_its_lease_and_the_log_says_where(
    lease: Lease, renewals: list[float]
) -> None:
    with capture_logs() as logs:
        with lease:
            hang_somewhere()
            with pytest.raises(LeaseLost):
                lease.check()
        assert lease.watch() == "cancel"
    (entry,) = [entry for entry in logs if entry["event"] == "holder_hangs"]
    assert entry["silent_seconds"] >= 1
    assert "in hang_somewhere" in entry["stack"]
    assert renewals[-1] - renewals[0] < LONGER_SECONDS


def hang_somewhere() -> None:
    """Stands for a call that does not return in time."""
    time.sleep(LONGER_SECONDS)
