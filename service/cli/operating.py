"""Commands of whoever runs the service: everything on one machine, or part by part."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

app = typer.Typer()

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every interface of this machine.")]


class StopRequested(BaseException):
    """Someone asked `palimpsest up` to stop; a BaseException, so that nothing on the way takes it for a failure."""


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
    from service.server import Server

    get_settings()  # a bad setting is told here, before anything listens
    configure_logging()
    listener = open_listener(host, port) if fd is None else socket.socket(fileno=fd)
    config = uvicorn.Config(
        "service.app:create_app",
        factory=True,
        log_config=None,
        access_log=False,  # it would write down queries, which name data subjects; the app logs its requests
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,  # longer than proxies and clients keep an idle connection, so that they close it
        server_header=False,
    )
    if fd is None:
        typer.echo(f"The API listens on {host} port {listener.getsockname()[1]}.", err=True)
    server = Server(config)
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
