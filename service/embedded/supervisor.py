"""Starts again what dies."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from service.embedded.errors import EmbeddedError, PartFailed
from service.embedded.processes import ChildProcess, Command

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STABLE_AFTER_SECONDS = 60.0
WATCH_SECONDS = 0.2


class Part(Protocol):
    """Something the supervisor keeps running: a server, the API, a worker."""

    @property
    def name(self) -> str: ...
    @property
    def running(self) -> bool: ...
    @property
    def process(self) -> ChildProcess: ...
    def start(self) -> object: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


class ServicePart:
    """One of the service's own processes, run by a command."""

    def __init__(self, command: Command, *, hold: Sequence[int] = ()) -> None:
        self.name = command.name
        self.process = ChildProcess(command, hold=hold)

    @property
    def running(self) -> bool:
        """Whether anything of it is there."""
        return self.process.running

    def start(self) -> Self:
        """Start it and return at once."""
        self.process = ChildProcess(self.process.command, hold=self.process.hold).start()
        return self

    @property
    def log(self) -> Path:
        """The file that what it prints goes to."""
        return self.process.command.log

    def ask_to_stop(self) -> None:
        """Ask it to stop and return at once."""
        self.process.ask_to_stop()

    def stop(self) -> None:
        """Stop it and wait for the end."""
        self.process.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()


@dataclass(slots=True)
class Watched:
    """A part and how often it has died of late."""

    part: Part
    may_fail: int | None
    """After so many deaths in a row the supervisor gives up; None: never."""
    started_at: float
    deaths: int = 0
    start_at: float | None = None
    """When to start it again; None while it runs."""


class Supervisor:
    """Watches parts from a thread of its own. A part that stays up for a minute is forgiven its earlier deaths."""

    def __init__(self, *, say: Callable[[str], None]) -> None:
        self._say = say
        self._watched: list[Watched] = []
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: EmbeddedError | None = None

    def watch(self, part: Part, *, may_fail: int | None = None) -> None:
        """Keep a running part running."""
        self._watched.append(Watched(part, may_fail, started_at=time.monotonic()))

    def start(self) -> None:
        """Begin to watch."""
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Start nothing any more. A server that is just being started is left to the caller to stop."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until the supervisor stops or gives up.

        Raises:
            EmbeddedError: a part kept dying.
        """
        self._ended.wait(timeout_seconds)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._stopping.wait(WATCH_SECONDS):
                for watched in self._watched:
                    self._look_after(watched, now=time.monotonic())
        except EmbeddedError as error:
            self.failure = error
        finally:
            self._ended.set()

    def _look_after(self, watched: Watched, *, now: float) -> None:
        if watched.start_at is not None:
            if now >= watched.start_at:
                self._start_again(watched)
        elif watched.part.running:
            if now - watched.started_at > STABLE_AFTER_SECONDS:
                watched.deaths = 0
        else:
            self._note_death(watched, now=now)

    def _note_death(self, watched: Watched, *, now: float) -> None:
        part, process = watched.part, watched.part.process
        how = describe_end(process.exit_code)
        watched.deaths += 1
        if watched.may_fail is not None and watched.deaths > watched.may_fail:
            what = f"{how}, for the {watched.deaths}th time in a row"
            raise PartFailed(part.name, what, log=process.command.log, last_lines=process.last_lines())
        pause = pause_seconds(watched.deaths)
        watched.start_at = now + pause
        last = [line for line in process.last_lines() if line.strip()][-1:]
        self._say(
            f"{part.name} {how}; starting it again in {pause:g} s"
            + (f" (last line: {last[0]})" if last else "")
        )

    def _start_again(self, watched: Watched) -> None:
        watched.start_at = None
        try:
            watched.part.start()
        except EmbeddedError:
            # It died while starting; the next look counts that death and decides.
            if self._stopping.is_set():
                return
        else:
            self._say(f"{watched.part.name} runs again")
        watched.started_at = time.monotonic()


def pause_seconds(deaths: int) -> float:
    """How long to wait before the next start, after so many deaths in a row."""
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(deaths - 1, 30), LONGEST_PAUSE_SECONDS)


def describe_end(exit_code: int | None) -> str:
    """Say how a process ended, in words."""
    if exit_code is None:
        return "is gone"
    number = exit_code - 128 if exit_code > 128 else -exit_code
    if number > 0 and number in signal.valid_signals():
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with exit code {exit_code}"
