"""Connections to a Postgres that hangs, in whole or in part. The server is real and so are the signals."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import psycopg
import pytest

from service.bounded_connections import BoundedConnection, Server, ServerSilent

ANSWER_SECONDS = 2  # the least that libpq takes for a connection


@pytest.fixture
def server() -> Server:
    """Statements may take three seconds, answers two."""
    return Server(answer_seconds=ANSWER_SECONDS, statement_seconds=3)


@pytest.fixture
def connection(server: Server, database_url: str) -> Iterator[BoundedConnection]:
    """A connection in the middle of a transaction."""
    with server.connect(database_url, connect_timeout=ANSWER_SECONDS) as opened:
        opened.execute("SELECT 1")
        yield opened


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """The processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def hung_server(connection: BoundedConnection) -> Iterator[None]:
    """All of Postgres stands still."""
    postmaster = psutil.Process(connection.info.backend_pid).parent()
    assert postmaster is not None
    with frozen(postmaster.pid, *(child.pid for child in postmaster.children(recursive=True))):
        yield


def test_a_statement_longer_than_the_server_may_be_silent_is_not_cut_off(
    connection: BoundedConnection,
) -> None:
    assert connection.execute("SELECT pg_sleep(2.6), 1").fetchone() == ("", 1)


def test_a_statement_on_a_hung_server_ends_when_no_other_connection_is_to_be_had(
    connection: BoundedConnection,
) -> None:
    connection.allow_statements_of(600)
    with hung_server(connection):
        start = time.monotonic()
        with pytest.raises(ServerSilent, match="kept silent"):
            connection.execute("SELECT 1")
        assert time.monotonic() - start < 20
    assert connection.closed


def test_a_ping_on_a_hung_backend_ends_though_the_server_takes_connections(
    connection: BoundedConnection,
) -> None:
    connection.commit()
    with frozen(connection.info.backend_pid), pytest.raises(ServerSilent):
        connection.execute("SELECT 1")
    assert connection.closed


def test_a_statement_on_a_hung_backend_ends_once_its_time_out_is_well_past(
    server: Server, connection: BoundedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.bounded_connections.MARGIN_SECONDS", 0.5)
    with frozen(connection.info.backend_pid), pytest.raises(ServerSilent):
        connection.execute("SELECT 1")


def test_a_copy_into_a_hung_server_ends(connection: BoundedConnection) -> None:
    connection.execute("CREATE TEMPORARY TABLE copied (line text)")

    def copy_for_ever() -> None:
        with (
            connection.cursor() as cursor,
            hung_server(connection),
            cursor.copy("COPY copied FROM STDIN") as copy,
        ):
            while True:
                copy.write(b"x" * 65536 + b"\n")

    with pytest.raises(ServerSilent):
        copy_for_ever()


def test_of_a_silent_server_one_caller_asks_and_the_others_are_refused_at_once(
    server: Server, connection: BoundedConnection, database_url: str
) -> None:
    def connect(_: int) -> tuple[type[BaseException], float]:
        start = time.monotonic()
        with pytest.raises(psycopg.OperationalError) as caught:
            server.connect(database_url, connect_timeout=ANSWER_SECONDS)
        return caught.type, time.monotonic() - start

    with hung_server(connection), ThreadPoolExecutor(8) as callers:
        assert connect(0)[0] is psycopg.errors.ConnectionTimeout
        ended = sorted(callers.map(connect, range(8)), key=lambda one: one[1])
    assert [kind for kind, _ in ended] == [ServerSilent] * 7 + [psycopg.errors.ConnectionTimeout]
    assert ended[6][1] < 1
    server.connect(database_url, connect_timeout=10).close()


def test_another_transaction_has_the_ordinary_time_out_again(connection: BoundedConnection) -> None:
    connection.allow_statements_of(600)
    connection.commit()
    connection.execute("SELECT 1")
    assert connection._statement_seconds == 3
