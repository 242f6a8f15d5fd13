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
    stats = filter(None, map(_stat, family(root)))
    return (
        sum(int(part) for stat in stats for part in stat[11:15]) / TICKS_PER_SECOND
    )  # own, reaped children's


def family(root: int) -> list[int]:
    """A process and its descendants, as they are now."""
    stats = {pid: stat for pid in _pids() if (stat := _stat(pid)) is not None}
    found = [root]
    for parent in found:  # grows while it is walked
        found.extend(pid for pid, stat in stats.items() if int(stat[1]) == parent)
    return found


class MemoryWatch:
    """As a context manager, samples the resident memory of a process and what is below it: `samples`, in bytes.

    Descendants are those of the start; pages that they share count once for each.
    """

    def __init__(self, root: int, *, every_seconds: float = 0.1) -> None:
        self._family = family(root)
        self.samples = [self._resident_bytes()]
        self._every_seconds = every_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every_seconds):
            self.samples.append(self._resident_bytes())

    def _resident_bytes(self) -> int:
        return PAGE_BYTES * sum(int(stat[21]) for stat in map(_stat, self._family) if stat is not None)


def _pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` after the name, state first; None for a process that has ended."""
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
