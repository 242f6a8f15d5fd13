"""When a training child is to be killed: it gets no further, or it holds more memory than it may.

Its heartbeat is no sign of progress: a thread of its own beats it, while a kernel may hang for ever.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from workers.training.contract import Progress
from workers.training.errors import TrainingFailed

SHARE_OF_MEMORY = 0.9
LOOK_EVERY_SECONDS = 1.0
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may take: seconds without progress, and bytes of resident memory, helpers included."""

    progress_timeout_seconds: float = 1800.0
    memory_limit_bytes: int | None = None

    @property
    def memory_bytes(self) -> int:
        """The limit given, or nine tenths of what the machine or the container has."""
        return self.memory_limit_bytes or int(SHARE_OF_MEMORY * machine_memory_bytes())


class Watchdog:
    """Watches one request of one child."""

    def __init__(self, pid: int, limits: Limits) -> None:
        self._pid = pid
        self._limits = limits
        self._memory_bytes = limits.memory_bytes
        self._where: tuple[str, int, int] = ("starting", 0, 0)
        self._moved = time.monotonic()
        self._looked = float("-inf")

    def saw(self, progress: Progress) -> None:
        """Notes a report; one that says the same as the last is no progress."""
        where = (progress.phase, progress.step, progress.checkpoint_step)
        if where != self._where:
            self._where, self._moved = where, time.monotonic()

    def check(self) -> None:
        """Looks, once a second at most.

        Raises:
            TrainingFailed: `no_progress` or `out_of_memory`; the child should be killed.
        """
        now = time.monotonic()
        if now - self._moved > self._limits.progress_timeout_seconds:
            phase, step, _ = self._where
            raise TrainingFailed(
                "no_progress",
                f"the training process got no further for {self._limits.progress_timeout_seconds:g} s ({phase}, step {step}) "
                "and was killed; PALIMPSEST_PROGRESS_TIMEOUT_SECONDS allows it longer",
                {"phase": phase, "step": step},
            )
        if now - self._looked < LOOK_EVERY_SECONDS:
            return
        self._looked = now
        held = resident_bytes(self._pid)
        if held > self._memory_bytes:
            raise TrainingFailed(
                "out_of_memory",
                f"the training process held {_mib(held)} of memory, and may hold {_mib(self._memory_bytes)}; lower "
                "training.batch_size or training.max_length, or raise PALIMPSEST_MEMORY_LIMIT_BYTES",
                {"resident_bytes": held, "limit_bytes": self._memory_bytes},
            )


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; 0 once it has gone.

    What they share with others (libraries, mapped weights) counts once: with the process itself.
    """
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        total = int(process.memory_info().rss)
        for helper in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                held = helper.memory_info()
                total += held.rss - getattr(held, "shared", 0)  # not every system tells
    return total


def machine_memory_bytes() -> int:
    """The memory of this machine, or of the container where that has less."""
    limits = [int(psutil.virtual_memory().total)]
    for file in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # no such file, or the word "max"
            limits.append(int(file.read_text()))
    return min(limits)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
