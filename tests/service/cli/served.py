"""The real API on a real socket, and a relay before it that can lose connections and answers."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import structlog
import uvicorn


@contextmanager
def serving() -> Iterator[int]:
    """Serves the app in a thread; yields its port."""
    from service.app import create_app  # here: it reads the settings, which the tests' conftest fixes first
    from service.metrics import http

    # Its lines would stand among those of the commands, which run in this very process.
    spoken, http.log = http.log, structlog.wrap_logger(structlog.ReturnLogger(), processors=[_say_nothing])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(), log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the API did not start"
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
        http.log = spoken


def _say_nothing(*_: object) -> NoReturn:
    """A processor of its own, so that the line goes nowhere however the process's logging is set up."""
    raise structlog.DropEvent


class Relay:
    """Passes connections on to the API, unless it is told to lose them."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.down = False
        self.answers_to_lose = 0
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listens no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                caller, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=(caller,), daemon=True).start()

    def _pass_on(self, caller: socket.socket) -> None:
        with caller, socket.create_connection(("127.0.0.1", self._target_port)) as service:
            answers = threading.Thread(target=self._answer, args=(service, caller), daemon=True)
            answers.start()
            self._copy(caller, service)
            answers.join()

    def _answer(self, service: socket.socket, caller: socket.socket) -> None:
        self._copy(service, caller, losing=True)

    def _copy(self, source: socket.socket, target: socket.socket, *, losing: bool = False) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                if self.down or (losing and self.answers_to_lose > 0):
                    self.answers_to_lose -= losing
                    self.lost += 1
                    break
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
