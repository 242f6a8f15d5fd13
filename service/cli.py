"""The palimpsest command."""

import json
import os
import re
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    name="palimpsest",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Palimpsest keeps a deployed model learning new tasks without losing the old ones.

    New here? Run `palimpsest up`. It starts everything on this machine (database, broker, API, one worker) with
    nothing to install by hand, and prints where the API listens and where its key lies. The other commands run the
    parts one by one, for a deployment of your own.""",
)
keys = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make, list, rotate and revoke API keys. A key belongs to a tenant and has scopes.",
)
app.add_typer(keys, name="keys")

DURATION = re.compile(r"(\d{1,5})([hdw])")
DURATION_UNITS = {"h": "hours", "d": "days", "w": "weeks"}

Tenant = Annotated[str, typer.Option(help="Who owns the keys, and all models and data reached with them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
OfState = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", show_default=False,
        help="State folder of a running `palimpsest up`; default: the database that DATABASE_URL names.",
    ),
]  # fmt: skip
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every interface of this machine.")]


class StopRequested(BaseException):
    """Someone asked `palimpsest up` to stop; a BaseException, so that nothing on the way takes it for a failure."""


def _version(wanted: bool) -> None:
    if wanted:
        from service.version import VERSION

        typer.echo(f"palimpsest {VERSION}")
        raise typer.Exit


@app.callback()
def palimpsest(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that come before any command."""


@app.command()
def up(
    state: Annotated[
        Path,
        typer.Option(
            help="Folder for everything that is kept: database, versions, keys, logs.", metavar="DIR"
        ),
    ] = Path("palimpsest-state"),
    host: Host = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Port of the API. Default: a free one.", min=0, max=65535, show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option(help="How many updates may train at once.", min=0)] = 1,
) -> None:
    """Run everything on this machine, in the foreground, until Ctrl-C.

    Starts Postgres, Valkey, the API and the workers from one state folder, and writes `connection.json` (address and
    API key) into it once requests can be served. Start it again on the same folder and everything is as it was.

    `DATABASE_URL`, `REDIS_URL` and `ARTIFACT_URL`, where set, replace the embedded part.
    """
    from service.embedded import Stack

    stack = Stack(state, host=host, port=port, workers=workers, say=typer.echo)
    _raise_on_stop_signals()
    try:
        with stack:
            typer.echo("Ready. Ctrl-C stops it.")
            stack.wait()
    except StopRequested:
        typer.echo("Stopped.")


@app.command()
def api(
    host: Host = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8000,
    fd: Annotated[
        int | None, typer.Option(hidden=True, help="Socket inherited from `palimpsest up`.")
    ] = None,
) -> None:
    """Run the API alone, over `DATABASE_URL`, `REDIS_URL` and `ARTIFACT_URL`.

    Any number may run over the same three. Run `palimpsest migrate` once before.
    """
    import socket

    import uvicorn

    from service.config import get_settings
    from service.embedded.ports import open_listener
    from service.logs import configure_logging

    get_settings()  # a bad setting is told here, before anything listens
    configure_logging()
    listener = open_listener(host, port) if fd is None else socket.socket(fileno=fd)
    config = uvicorn.Config(
        "service.app:create_app",
        factory=True,
        log_config=None,
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    if fd is None:
        typer.echo(f"The API listens on {host} port {listener.getsockname()[1]}.", err=True)
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(1)


@app.command()
def worker(
    concurrency: Annotated[
        int, typer.Option(help="Updates this worker trains at once; leave it at one per GPU.", min=1)
    ] = 1,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of this worker; default: made from the machine and the process.", show_default=False
        ),
    ] = None,
) -> NoReturn:
    """Run a worker, which trains and scores updates, over `DATABASE_URL`, `REDIS_URL` and `ARTIFACT_URL`.

    Run one per GPU, on as many machines as you like. SIGTERM makes it put its update back into the queue and end.
    """
    _require_training_libraries()
    arguments = ["-A", "workers.app", "worker", "--pool=threads", f"--concurrency={concurrency}"]
    arguments += ["--loglevel=INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    arguments += ["--hostname", f"{name or f'worker-{os.getpid()}'}@%h"]
    _become_module("celery", *arguments)


@app.command()
def sweeper() -> NoReturn:
    """Run the sweeper, which puts updates of lost workers back into the queue.

    Every worker does this too; a sweeper of its own notices the loss even while no worker runs.
    """
    _become_module("workers.housekeeping")


@app.command()
def migrate(
    to: Annotated[str, typer.Option(help="Revision of the schema to go to.", metavar="REV")] = "head",
    down: Annotated[
        bool, typer.Option("--down", help="Go back to an older revision; what came since is dropped.")
    ] = False,
) -> None:
    """Bring the database at `DATABASE_URL` to this release's schema, while the service runs. Safe to run again.

    The login must own the database and may need to create roles (`CREATEROLE`) the first time. Going back to an
    older release: stop the newer one, migrate `--to` its revision `--down`, start the older one.
    """
    from service.config import get_settings
    from service.migrate import downgrade, upgrade

    (downgrade if down else upgrade)(get_settings().database_url, revision=to)
    typer.echo(
        "The database has this release's schema." if to == "head" else f"The database is at revision {to}."
    )


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Where to; a new or empty folder.")],
    state: OfState = None,
    artifacts: Annotated[
        bool,
        typer.Option(help="Copy the artifacts too; leave them out where the store is kept safe otherwise."),
    ] = True,
) -> None:
    """Back up the database and the artifacts of a running service.

    Of a running `palimpsest up` (give its `--state` folder), or of what `DATABASE_URL` and `ARTIFACT_URL` name. The folder
    holds everything the service knows, with `--state` its secrets too: keep it as safe as the service itself.
    """
    _take_settings_of(state)
    from service.backup import take_backup
    from service.config import get_settings
    from service.embedded.state import StateFolder, read_running

    if state is not None:
        os.environ.setdefault("ARTIFACT_URL", StateFolder(state).artifacts.as_uri())
    settings = get_settings()
    take_backup(
        folder, database_url=settings.database_url, artifact_url=settings.artifact_url, with_artifacts=artifacts,
        secrets=read_running(state)[1] if state is not None else None, say=typer.echo,
    )  # fmt: skip


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="The backup.")],
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default=False, help="A new state folder; `palimpsest up` runs from it then."
        ),
    ] = None,
) -> None:
    """Restore a backup into a new state folder, or into the empty database and the store of `DATABASE_URL` and `ARTIFACT_URL`."""
    from service.backup import restore_backup, restore_into_state
    from service.config import get_settings

    if state is not None:
        restore_into_state(folder, state, say=typer.echo)
        return
    settings = get_settings()
    restore_backup(
        folder, database_url=settings.database_url, artifact_url=settings.artifact_url, say=typer.echo
    )


@keys.command("create")
def create(
    tenant: Tenant,
    scopes: Annotated[
        str, typer.Option(help="What it may do, with commas: read, ingest, train, deploy, admin.")
    ],
    name: Annotated[str, typer.Option(help="What it is for; shown in lists and in the history.")] = "unnamed",
    expires_in: Annotated[
        str | None,
        typer.Option(help="How long it is valid: 12h, 90d, 52w. Default: for ever.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    state: OfState = None,
) -> None:
    """Make a key and print it. It is shown this once; only a hash is stored.

    For a running `palimpsest up` give its `--state` folder. Otherwise `DATABASE_URL` and `PALIMPSEST_KEY_PEPPER` must be
    those of the API: a key made under another pepper is not known to it.

    Example: `palimpsest keys create --tenant shop --scopes read,ingest,train --name nightly --expires-in 90d`
    """
    _take_settings_of(state)
    from service.db import session_scope
    from service.security import create_key, expiry_after, pepper_is_the_default

    if pepper_is_the_default():
        typer.echo(
            "Warning: PALIMPSEST_KEY_PEPPER is not set; this key works only where it is not set either.",
            err=True,
        )
    expires_at = expiry_after(parse_duration(expires_in)) if expires_in else None
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    with session_scope(tenant=tenant) as session:
        key, secret = create_key(session, tenant=tenant, scopes=wanted, name=name, expires_at=expires_at)
        shown = {"id": key.id, "prefix": key.prefix, "tenant": tenant, "scopes": key.scopes, "name": name}
    if as_json:
        typer.echo(
            json.dumps({"api_key": secret, **shown, "expires_at": expires_at and expires_at.isoformat()})
        )
    else:
        typer.echo(secret)


@keys.command("list")
def list_(tenant: Tenant, as_json: AsJson = False, state: OfState = None) -> None:
    """List a tenant's keys, newest first, without their secrets."""
    _take_settings_of(state)
    from service.db import session_scope
    from service.security import list_keys

    with session_scope(tenant=tenant) as session:
        rows: list[dict[str, object]] = [
            {
                "id": key.id,
                "prefix": key.prefix,
                "name": key.name,
                "scopes": list(key.scopes),
                "created_at": key.created_at.isoformat(),
                "expires_at": key.expires_at and key.expires_at.isoformat(),
                "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
                "last_used_at": key.last_used_at and key.last_used_at.isoformat(),
                "previous_secret_valid_until": key.previous_expires_at
                and key.previous_expires_at.isoformat(),
            }
            for key in list_keys(session)
        ]
    typer.echo(
        json.dumps(rows, indent=2) if as_json else "\n".join(map(_line, rows)) or f"{tenant} has no keys."
    )


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id or prefix, as `palimpsest keys list` shows them.")],
    tenant: Tenant,
    state: OfState = None,
) -> None:
    """Revoke a key at once. Doing so again changes nothing."""
    _take_settings_of(state)
    from service.db import session_scope
    from service.security import revoke_key

    with session_scope(tenant=tenant) as session:
        revoked = revoke_key(session, key_id=key)
    typer.echo(f"The key '{revoked.name}' ({revoked.prefix}) is revoked.")


@keys.command("rotate")
def rotate(
    key: Annotated[str, typer.Argument(help="The key's id or prefix, as `palimpsest keys list` shows them.")],
    tenant: Tenant,
    overlap: Annotated[
        str | None,
        typer.Option(
            help="How long the old secret stays valid: 12h, 7d, 2w. Default: not at all.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    state: OfState = None,
) -> None:
    """Replace a key's secret and print the new key. It is shown this once; only a hash is stored.

    Id, prefix, scopes, name and expiry stay. For a secret that leaked leave `--overlap` away.
    """
    _take_settings_of(state)
    from service.db import session_scope
    from service.security import rotate_key

    lasting = parse_duration(overlap, option="--overlap") if overlap else timedelta(0)
    with session_scope(tenant=tenant) as session:
        rotated, secret = rotate_key(session, key_id=key, overlap=lasting)
        until = rotated.previous_expires_at and rotated.previous_expires_at.isoformat()
        shown = {"id": rotated.id, "prefix": rotated.prefix, "previous_secret_valid_until": until}
    typer.echo(json.dumps({"api_key": secret, **shown}) if as_json else secret)


def _take_settings_of(state: Path | None) -> None:
    """Act on the database, and under the pepper, of a running `palimpsest up`."""
    if state is None:
        return
    from service.embedded.state import read_running

    connection, secrets = read_running(state)
    os.environ["DATABASE_URL"] = connection.database_url
    os.environ["PALIMPSEST_KEY_PEPPER"] = secrets.key_pepper


def parse_duration(text: str, *, option: str = "--expires-in") -> timedelta:
    """The length of time a text such as 12h, 90d or 52w stands for.

    Raises:
        typer.BadParameter: the text is none of these.
    """
    match = DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"'{text}' is no length of time; write 12h, 90d or 52w", param_hint=option)
    return timedelta(**{DURATION_UNITS[match[2]]: int(match[1])})


def main() -> None:
    """Run the command line; an expected failure is one line on standard error and exit code 1."""
    try:
        app(prog_name="palimpsest")
    except Exception as error:
        message = _expected(error)
        if message is None:
            raise
        typer.echo(f"palimpsest: error: {message}", err=True)
        sys.exit(1)


def _line(row: dict[str, object]) -> str:
    scopes = ",".join(row["scopes"]) if isinstance(row["scopes"], list) else ""
    state = f"revoked {row['revoked_at']}" if row["revoked_at"] else f"expires {row['expires_at'] or 'never'}"
    return f"{row['prefix']}  {row['name']}  {scopes}  {state}  last used {row['last_used_at'] or 'never'}"


def _raise_on_stop_signals() -> None:
    """Turn the first stop signal into an exception in the main thread, and the second into an immediate end."""
    asked = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(1)  # the keepers end what still runs
        asked = True
        typer.echo(
            "Stopping: workers put their updates back, then the servers shut down. Again to stop at once."
        )
        raise StopRequested

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    # Ignored under nohup, and to stay so.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)


def _become_module(module: str, *arguments: str) -> NoReturn:
    # By name, in place of this process: the service does not import the workers.
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # a fixed program, no shell


def _require_training_libraries() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        typer.echo(
            f"palimpsest: error: a worker needs {', '.join(missing)}; install the extra 'worker' "
            f"(pip install 'palimpsest[worker]')",
            err=True,
        )
        raise typer.Exit(1)


def _expected(error: Exception) -> str | None:
    """The line for a failure that a user can mend; None for one that is ours."""
    from service.embedded.errors import EmbeddedError

    if isinstance(error, EmbeddedError):
        return str(error)

    from pydantic import ValidationError
    from sqlalchemy.exc import ArgumentError, DBAPIError

    from service.errors import ServiceError

    if isinstance(error, ServiceError):
        return error.detail
    if isinstance(error, ValidationError) and error.title == "Settings":
        return "; ".join(f"{_setting(item['loc'])} is wrong: {item['msg']}" for item in error.errors())
    if isinstance(error, ArgumentError):
        return "DATABASE_URL cannot be read; write postgresql://user:password@host:5432/database"
    if isinstance(error, DBAPIError):
        return _database_error(error)
    if type(error).__module__.startswith("alembic."):
        return f"the migration is not possible: {error}"
    return None


def _setting(place: tuple[int | str, ...]) -> str:
    name = str(place[0]) if place else "a setting"
    return name if name.isupper() else f"PALIMPSEST_{name.upper()}"


def _database_error(error: Exception) -> str | None:
    from sqlalchemy import make_url
    from sqlalchemy.exc import DBAPIError, OperationalError

    from service.config import get_settings

    reason = str(error.orig).strip().splitlines()[0] if isinstance(error, DBAPIError) else str(error)
    where = make_url(get_settings().database_url).render_as_string(hide_password=True)
    if isinstance(error, OperationalError):
        return f"the database at {where} does not answer: {reason}"
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    if state in ("42P01", "22023"):  # no such table, no such role
        return f"the database at {where} has not been migrated ({reason}); run 'palimpsest migrate' first"
    if state == "42501":
        return f"the login of {where} may not do this: {reason}"
    return None


if __name__ == "__main__":
    main()
