"""Clocks that are wrong: leases, hints and the sweeps of orphans go by clocks that all share."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.faults.rig import LONG, ROOT, Part, Rig, until

DAY = 86_400
# Put before everything else on a process's path, this shifts its wall clock by the seconds that a file holds at that moment.
SHIFTED_CLOCK = """
import datetime, os, time

now, now_ns = time.time, time.time_ns

def offset():
    with open(os.environ["CLOCK_OFFSET_FILE"]) as file:
        return int(file.read() or 0)

time.time = lambda: now() + offset()
time.time_ns = lambda: now_ns() + offset() * 1_000_000_000
true = datetime.datetime

class OfEveryDatetime(type(true)):
    def __instancecheck__(cls, value):
        return isinstance(value, true)

class Shifted(true, metaclass=OfEveryDatetime):
    @classmethod
    def now(cls, tz=None):
        return true.now(tz) + datetime.timedelta(seconds=offset())

    @classmethod
    def utcnow(cls):
        return true.utcnow() + datetime.timedelta(seconds=offset())

datetime.datetime = Shifted
"""


class Clock:
    """The wall clock of one process: `shift` sets it ahead (or back) while the process runs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SHIFTED_CLOCK)
        self._offset = folder / "offset"
        self.environment = {"PYTHONPATH": f"{folder}:{ROOT}", "CLOCK_OFFSET_FILE": str(self._offset)}

    def shift(self, seconds: int) -> "Clock":
        """Sets the clock that far from the truth."""
        aside = self._offset.with_suffix(".new")
        aside.write_text(str(seconds))
        aside.rename(self._offset)
        return self


@pytest.mark.slow
def test_of_two_workers_with_wrong_clocks_that_jump_one_keeps_its_lease_and_the_other_takes_nothing(
    rig: Rig, tmp_path: Path
) -> None:
    ahead, behind = Clock(tmp_path / "ahead").shift(DAY), Clock(tmp_path / "behind").shift(-DAY)
    workers = [rig.start_worker(anew=True, **clock.environment) for clock in (ahead, behind)]
    rig.learnable("one")
    until(lambda: logged_on(DAY, workers[0]) and logged_on(-DAY, workers[1]), what="logs by the wrong clocks")
    update = rig.world.request("one", training={**LONG, "epochs": 20})["id"]
    for clock, seconds in ((ahead, -DAY), (behind, DAY), (ahead, DAY), (behind, -DAY)):
        step = rig.at(update)["step"]
        clock.shift(seconds)
        rig.at(update, step=step + 4)
    ended = rig.ended(update)
    assert (ended["status"], ended["attempt"]) == ("promoted", 1)
    assert [event["type"] for event in rig.events(update)] == ["queued", "training", "evaluating", "promoted"]
    [(off,)] = rig.sql(
        "SELECT max(abs(extract(epoch FROM now() - t))) FROM updates,"
        " LATERAL (VALUES (created_at), (started_at), (finished_at)) AS times (t)"
    )
    assert off < DAY / 2, "a time that is not the database's"
    rig.check_ledger()


def logged_on(seconds: int, worker: Part) -> bool:
    """Says whether the worker has logged anything by a clock that is so far off."""
    day = datetime.fromtimestamp(datetime.now(UTC).timestamp() + seconds, UTC).strftime("%Y-%m-%d")
    return f'"timestamp": "{day}' in worker.log


@pytest.mark.parametrize("offset", [DAY, -DAY])
def test_a_sweeper_with_a_wrong_clock_deletes_old_orphans_and_no_new_artifact(
    database: str, tmp_path: Path, offset: int
) -> None:
    from service.artifacts import ArtifactStore
    from workers.housekeeping import ORPHAN_AGE_SECONDS

    store = ArtifactStore((tmp_path / "store").as_uri())
    kept = {}
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter.json").write_text(name)
        kept[name], _ = store.put_folder(tmp_path / name)
    [old] = (tmp_path / "store").rglob(f"{kept['old']}.tar")
    then = old.stat().st_mtime - ORPHAN_AGE_SECONDS - 60
    os.utime(old, (then, then))
    clock = Clock(tmp_path / "clock").shift(offset)
    environment = {**os.environ, **clock.environment, "ARTIFACT_URL": (tmp_path / "store").as_uri()}
    sweep = "from workers.housekeeping import sweep_store; sweep_store()"
    subprocess.run([sys.executable, "-c", sweep], env=environment, cwd=ROOT, check=True, timeout=120)
    assert [sha256 for sha256, _ in store.hashes()] == [kept["new"]]


# Who may ask this machine what time it is, and why no lease, limit or deletion hangs on it.
WALL_CLOCK_READERS = {
    "service/backup.py": "writes down for people when a backup was taken",
    "service/cli/keys.py": "turns the command line's --expires-in into a moment; the API refuses one in the past",
    "service/keys/schemas.py": "refuses an expiry in the past early; whether a key is valid, the database says",
    "service/rate_limits.py": "tells the client in how many seconds to come back",
    "service/web/session.py": "ends a browser's session after hours; whether its key is valid, the database says",
    "service/security.py": "turns the command line's --expires-in into a moment",
}
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def wall_clock_reads(source: str) -> Iterator[str]:
    """Yields every call of a wall clock in a module's source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ".".join(ast.unparse(node.func).split(".")[-2:])
            if name in WALL_CLOCKS:
                yield name
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names if f"time.{alias.name}" in WALL_CLOCKS)


def test_nothing_but_what_is_listed_here_reads_the_wall_clock_of_its_machine() -> None:
    files = [path for room in ("service", "workers") for path in (ROOT / room).rglob("*.py")]
    readers = {str(path.relative_to(ROOT)) for path in files if any(wall_clock_reads(path.read_text()))}
    assert readers == set(WALL_CLOCK_READERS)
