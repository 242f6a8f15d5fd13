"""Engine and sessions; the only place that commits.

Every transaction first takes a role without login (`palimpsest_app` or `palimpsest_worker`) and names its
tenant, so that row-level security applies even when the login itself is a superuser.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, TypeVar

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    any_,
    create_engine,
    event,
    literal,
    make_url,
    text,
)
from sqlalchemy.orm import InstrumentedAttribute, Session, SessionTransaction, sessionmaker

from service.bounded_connections import BoundedConnection, Server
from service.config import get_settings
from service.failpoints import reach
from service.signs_of_life import show_life

Role = Literal["app", "worker"]
Value = TypeVar("Value")
EVERY_TENANT = "*"  # what a worker names while it looks for work; the app role can see nothing under it


def driver_url(database_url: str) -> str:
    """Returns the URL with the driver this service uses (psycopg 3)."""
    return make_url(database_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@lru_cache
def engine_for(database_url: str) -> Engine:
    """The process's engine for one database, with bounded waits for connections and statements."""
    settings = get_settings()
    server = Server(
        answer_seconds=settings.database_connect_timeout_seconds,
        statement_seconds=settings.statement_timeout_seconds,
    )
    engine = create_engine(
        driver_url(database_url),
        pool_size=settings.database_pool_size,
        max_overflow=settings.database_pool_size,
        pool_timeout=settings.database_connect_timeout_seconds,
        pool_pre_ping=True,
        hide_parameters=True,  # they are people's texts, and errors go to logs
        connect_args={
            "connect_timeout": settings.database_connect_timeout_seconds,
            "options": f"-c statement_timeout={settings.statement_timeout_seconds * 1000}"
            f" -c idle_in_transaction_session_timeout={settings.statement_timeout_seconds * 1000}"
            " -c timezone=UTC",
            "application_name": "palimpsest",
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, args: list[Any], parameters: dict[str, Any]) -> Any:
        return server.connect(*args, **parameters)

    event.listen(engine, "after_cursor_execute", lambda *_: show_life())
    return engine


@lru_cache
def _session_factory(database_url: str) -> sessionmaker[Session]:
    factory = sessionmaker(engine_for(database_url), expire_on_commit=False)
    event.listen(factory, "after_begin", _enter)
    return factory


def _enter(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    if connection.in_nested_transaction():
        return
    connection.execute(
        text("SELECT set_config('role', :role, true), set_config('palimpsest.tenant', :tenant, true)"),
        {"role": f"palimpsest_{session.info['role']}", "tenant": session.info["tenant"]},
    )


@contextmanager
def session_scope(
    *, tenant: str = "", role: Role = "app", key_id: str | None = None, database_url: str | None = None
) -> Iterator[Session]:
    """Yields a session whose transaction commits on leaving and rolls back on an error.

    Functions given to `after_commit` run once the commit has succeeded. An empty tenant sees no tenant's rows.
    `key_id` is the API key that asks; audit entries name it.
    """
    factory = _session_factory(database_url or get_settings().database_url)
    with factory() as session:
        session.info.update(role=role, tenant=tenant, key_id=key_id)
        with session.begin():
            yield session
            if key_id is not None:  # a request's own session; asking for its key has another
                reach("before_request_commit")
        if key_id is not None:
            reach("after_request_commit")
        for action in session.info.pop("after_commit", []):
            action()


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Runs `action` once the session's transaction has committed; never if it rolls back."""
    session.info.setdefault("after_commit", []).append(action)


def allow_statements_of(session: Session, *, seconds: int) -> None:
    """Lets each statement of the rest of the transaction take up to `seconds`, on the server and on this side of it."""
    connection = session.connection()
    connection.execute(text("SELECT set_config('statement_timeout', :limit, true)"), {"limit": f"{seconds}s"})
    bounded = connection.connection.driver_connection
    assert isinstance(bounded, BoundedConnection)  # noqa: S101  # the engine makes no others
    bounded.allow_statements_of(seconds)


def among(column: InstrumentedAttribute[Value], values: Iterable[Value]) -> ColumnElement[bool]:
    """The condition that a column has one of the values: one parameter, and so one statement, however many there are."""
    return column == any_(literal(list(values), ARRAY(column.type)))
