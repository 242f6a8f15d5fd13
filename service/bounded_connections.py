"""Database connections that give up on a server that no longer answers.

A server that hangs, or whose host is gone without a word, breaks no connection: `statement_timeout` is the server's own,
and TCP's time-outs do not count while the kernel at the other end acknowledges. So whoever waits keeps the time.
"""

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import ConnectionTimeout
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready

Result = TypeVar("Result")
MARGIN_SECONDS = 5.0  # a statement that timed out has this long to say so


class ServerSilent(psycopg.OperationalError):
    """The database server does not answer, and this call no longer waits for it."""


class Server:
    """What this process knows of one database server: whether it answers new connections."""

    def __init__(self, *, answer_seconds: float, statement_seconds: float) -> None:
        """`answer_seconds` bounds what takes no time, `statement_seconds` is the server's own statement time-out."""
        self.answer_seconds = answer_seconds
        self.statement_seconds = statement_seconds
        self._silent = False
        self._trying = threading.Lock()

    def connect(self, *args: Any, **kwargs: Any) -> "BoundedConnection":
        """Opens a connection. Of a silent server one caller at a time asks again; the others are refused at once.

        Otherwise every call would wait out the whole time-out, and calls would pile up behind one another.
        """

        def open_one() -> BoundedConnection:
            connection: BoundedConnection = BoundedConnection.connect(*args, **kwargs)
            connection.watch(self, answers=answers)
            return connection

        def answers() -> bool:
            try:
                self._ask(open_one, patience_seconds=self.answer_seconds).close()
            except (ConnectionTimeout, ServerSilent):
                return False
            except psycopg.OperationalError:
                return True  # even a refusal is an answer
            return True

        return self._ask(open_one)

    def _ask(
        self, open_one: Callable[[], "BoundedConnection"], *, patience_seconds: float = 0.0
    ) -> "BoundedConnection":
        alone = self._silent
        if alone and not self._trying.acquire(timeout=patience_seconds):
            raise ServerSilent("the database server has not answered since the last attempt")
        try:
            connection = open_one()
        except ConnectionTimeout:
            self._silent = True
            raise
        except psycopg.OperationalError:
            self._silent = False
            raise
        finally:
            if alone:
                self._trying.release()
        self._silent = False
        return connection


class BoundedConnection(psycopg.Connection[Any]):
    """A connection on which no wait is for ever. What it waits for is bounded by the server's silence, not by its work:

    - outside of a transaction (a ping, the first statement) an answer must come within the server's `answer_seconds`;
    - within one, a silence as long as that makes it ask for a second connection, and give up if none is to be had;
    - in any case it gives up when the statement's own time-out is well past (this one backend hangs).
    """

    _server: Server
    _answers: Callable[[], bool]
    _statement_seconds: float

    def watch(self, server: Server, *, answers: Callable[[], bool]) -> None:
        """Begins to keep the time; `answers` asks the server for another connection."""
        self._server, self._answers = server, answers
        self._statement_seconds = server.statement_seconds

    def allow_statements_of(self, seconds: float) -> None:
        """Lets statements take this long until the transaction ends; the server's time-out is set apart from this."""
        self._statement_seconds = seconds

    def wait(self, gen: PQGen[Result], *args: Any, **kwargs: Any) -> Result:
        """Carries out an operation; every one of the connection's comes through here.

        Raises:
            ServerSilent: the server kept silent for too long; the connection is closed.
        """
        return super().wait(self._watched(gen), *args, **kwargs)

    def _watched(self, gen: PQGen[Result]) -> PQGen[Result]:
        """Does as `gen` does; psycopg resumes it with `Ready.NONE` every tenth of a second in which nothing came."""
        at_once = self.pgconn.transaction_status == TransactionStatus.IDLE
        if at_once:
            self._statement_seconds = self._server.statement_seconds
        heard = asked = monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                now = monotonic()
                if ready != Ready.NONE:
                    heard = asked = now
                elif now - asked > self._server.answer_seconds:
                    self._bear(now - heard, at_once=at_once)
                    asked = monotonic()
                wanted = gen.send(ready)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _bear(self, silent_seconds: float, *, at_once: bool) -> None:
        if not at_once and silent_seconds <= self._statement_seconds + MARGIN_SECONDS and self._answers():
            return
        self.pgconn.finish()
        raise ServerSilent(f"the database server kept silent for {silent_seconds:.0f} s")
