"""What the tests of the embedded runtime share: finding processes, and launchers that can be killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3]
# What the suite sets for its own servers, and what would keep a stack from starting its own.
GIVEN = ("DATABASE_URL", "REDIS_URL", "ARTIFACT_URL", "PALIMPSEST_KEY_PEPPER", "PALIMPSEST_WORK_DIR")


@dataclass
class Launchers:
    """Starts launchers as processes of their own, so that a test can kill them, and looks at what is left."""

    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def python(self, code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
        """Run Python code in a process of its own."""
        return self.run([sys.executable, "-c", code, *map(str, arguments)], **options)

    def palimpsest(self, *arguments: object, **options: object) -> subprocess.Popen[str]:
        """Run a palimpsest command in a process of its own."""
        return self.run([sys.executable, "-m", "service.cli", *map(str, arguments)], **options)

    def run(self, command: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Run a command with this source on its path."""
        path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        for name in GIVEN:
            environment.pop(name, None)
        settings = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process: subprocess.Popen[str] = subprocess.Popen(command, **{**settings, **options})
        self.started.append(process)
        return process

    @staticmethod
    def alive(pid: int) -> bool:
        """Whether a process is there and no zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X")

    @staticmethod
    def below(pid: int) -> set[int]:
        """Every process below one, itself not counted."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(FileNotFoundError, ProcessLookupError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        found = {pid}
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return found - {pid}

    def gone(self, pids: Iterable[int], *, seconds: float = 8.0) -> bool:
        """Whether all of these end within a time."""
        watched = list(pids)
        return self.until(lambda: not any(map(self.alive, watched)), seconds=seconds)

    @staticmethod
    def until(condition: Callable[[], object], *, seconds: float = 8.0) -> bool:
        """Whether a condition comes true within a time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.02)
        return bool(condition())


@pytest.fixture
def launchers() -> Iterator[Launchers]:
    """Launchers that are gone after the test, whatever it did."""
    all_of_them = Launchers()
    yield all_of_them
    for process in all_of_them.started:
        process.kill()
        process.communicate()


@pytest.fixture
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which a stack starts all of its parts."""
    for name in GIVEN:
        monkeypatch.delenv(name, raising=False)
