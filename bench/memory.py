"""Resident memory of processes over time, from /proc."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.cpu import family_of, read_stats

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """As a context manager, samples the resident memory of a process and what is below it: `samples`, in bytes.

    Descendants are those of the start; pages that they share count once for each.
    """

    def __init__(self, root: int, *, every_seconds: float = 0.1) -> None:
        self._family = family_of(root, read_stats())
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
        return PAGE_BYTES * sum(map(_resident_pages, self._family))


def _resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # it ended meanwhile
        return 0
