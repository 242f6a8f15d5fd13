"""Child processes that cannot outlive the launcher."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from service.embedded import keeper

LOG_LIMIT_BYTES = 20 * 1024 * 1024
KEEPER_GRACE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Command:
    """How to start one process, and how to end it."""

    name: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the launcher's own environment."""
    identity: str = "same"
    """`same`, `namespace` (a user namespace in which it is `nobody`), or `UID:GID`."""
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = 10.0
    death_signal: int = signal.SIGKILL
    """What it gets when the launcher dies without stopping it."""
    hand_on: Sequence[int] = ()
    """File descriptors that the process itself inherits."""
    remove_on_death: Sequence[Path] = ()
    """Files that are false once the launcher is dead."""


class ChildProcess:
    """One running command under its keeper. Safe to start from any thread."""

    def __init__(self, command: Command, *, hold: Sequence[int] = ()) -> None:
        """`hold` names file descriptors (a lock) that stay open until the last process of the command is gone."""
        self.command = command
        self.hold = tuple(hold)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._liveness: int | None = None
        self._log_start = 0

    def start(self, *, output: BinaryIO | None = None) -> Self:
        """Start the command; what it prints is appended to its log, or standard output to `output` where given."""
        reader, self._liveness = os.pipe()
        try:
            with _open_log(self.command.log) as log:
                self._log_start = log.tell()
                self._keeper = subprocess.Popen(
                    self._arguments(reader),
                    stdin=subprocess.DEVNULL,
                    stdout=output or log,
                    stderr=log,
                    env={**os.environ, **self.command.environment},
                    pass_fds=(reader, *self.hold, *self.command.hand_on),
                    # Ctrl-C in a terminal reaches the launcher alone, which stops the parts in order.
                    start_new_session=True,
                )
        finally:
            os.close(reader)
        return self

    @property
    def pid(self) -> int | None:
        """The keeper's process id."""
        return self._keeper.pid if self._keeper else None

    @property
    def exit_code(self) -> int | None:
        """How the command ended (128 + n for signal n), or None while it runs or was never started."""
        return self._keeper.poll() if self._keeper else None

    @property
    def running(self) -> bool:
        """Whether anything of the command is still there."""
        return self._keeper is not None and self._keeper.poll() is None

    def ask_to_stop(self) -> None:
        """Send the stop signal and return at once."""
        self._signal(self.command.stop_signal)

    def stop(self) -> bool:
        """End the command and everything it started; True when it ended by itself within `stop_seconds`."""
        self.ask_to_stop()
        graceful = self.wait(self.command.stop_seconds)
        self._release()
        return graceful

    def kill(self) -> None:
        """End the command as `kill -9` would, with everything it started."""
        self._signal(keeper.KILL_NOW)
        self.wait(KEEPER_GRACE_SECONDS)
        self._release()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the end; False when it still runs after that time."""
        if self._keeper is None:
            return True
        try:
            self._keeper.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_lines(self, count: int = 12) -> list[str]:
        """The last lines it printed since this start."""
        with suppress(FileNotFoundError), self.command.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - 64 * 1024))
            return log.read().decode("utf-8", "replace").splitlines()[-count:]
        return []

    def _signal(self, number: int) -> None:
        if self._keeper is not None:
            self._keeper.send_signal(number)

    def _release(self) -> None:
        """Close the pipe, which ends whatever is left, and wait for that."""
        if self._liveness is not None:
            os.close(self._liveness)
            self._liveness = None
        if not self.wait(KEEPER_GRACE_SECONDS + 5):
            self._signal(signal.SIGKILL)
            self.wait(5)

    def _arguments(self, liveness: int) -> list[str]:
        command = self.command
        arguments = [sys.executable, "-I", "-S", keeper.__file__]
        arguments += ["--liveness", str(liveness), "--death-signal", str(int(command.death_signal))]
        arguments += ["--grace", str(KEEPER_GRACE_SECONDS), "--identity", command.identity]
        for descriptor in self.hold:
            arguments += ["--hold", str(descriptor)]
        for path in command.remove_on_death:
            arguments += ["--remove", str(path)]
        return [*arguments, "--", *command.arguments]


def _open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return path.open("ab")
