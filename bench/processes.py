"""What running processes take, read from /proc: processor time and resident memory of a process and all below it."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PROC = Path("/proc")


def cpu_seconds(root: int) -> float:
    """User and system seconds of a process and its descendants so far, those that have ended included."""
    ticks = (sum(int(part) for part in stat[11:15]) for stat in _tree(root))  # own and reaped children's
    return sum(ticks) / TICKS_PER_SECOND


def resident_bytes(root: int) -> int:
    """Resident memory of a process and its descendants; pages that they share count once for each."""
    return sum(int(stat[21]) for stat in _tree(root)) * PAGE_BYTES


class MemoryWatch:
    """As a context manager, samples the resident memory of a process and its descendants: `samples`, in bytes."""

    def __init__(self, root: int, *, every_seconds: float = 0.1) -> None:
        self.samples = [resident_bytes(root)]
        self._root, self._every_seconds = root, every_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(self._every_seconds):
            self.samples.append(resident_bytes(self._root))


def _tree(root: int) -> list[list[str]]:
    """The fields of `/proc/PID/stat` after the name (state first), of the process and its descendants."""
    stats = {pid: stat for pid in _pids() if (stat := _stat(pid)) is not None}
    found = [root]
    for parent in found:
        found.extend(pid for pid, stat in stats.items() if int(stat[1]) == parent)
    return [stats[pid] for pid in found if pid in stats]


def _pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
        return None
