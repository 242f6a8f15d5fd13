"""The embedded Postgres: private, durable, not run by root, and never in two minds about its folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from service.embedded import identity
from service.embedded.errors import BinariesMissing, PartFailed, PortInUse
from service.embedded.postgres import PostgresServer

LAUNCHER = """
import sys, time
from pathlib import Path
from service.embedded.postgres import PostgresServer
folder = Path(sys.argv[1])
server = PostgresServer(folder / "postgres", logs_dir=folder / "logs", password="hidden").start()
print(server.url, flush=True)
time.sleep(300)
"""
ORDINARY_USER = 65534


def server_in(folder: Path, **options) -> PostgresServer:
    return PostgresServer(folder / "postgres", logs_dir=folder / "logs", **{"password": "hidden", **options})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with server_in(tmp_path_factory.mktemp("postgres")) as running:
        yield running


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A data folder after its first start, to copy: making one takes longer than most tests."""
    folder = tmp_path_factory.mktemp("pristine")
    server_in(folder, durable=False).start().stop()
    return folder / "postgres"


@pytest.fixture
def kept(pristine, tmp_path) -> Path:
    """A folder that has been used before."""
    shutil.copytree(pristine, tmp_path / "postgres")
    return tmp_path


def ask(url: str, query: str):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchone()[0]


def test_the_owner_of_the_database_is_no_superuser(server):
    assert ask(server.url, "SELECT current_user") == "palimpsest"
    assert ask(server.url, "SELECT current_setting('is_superuser')") == "off"
    assert ask(server.superuser_url, "SELECT current_setting('is_superuser')") == "on"


def test_the_owner_can_make_a_role_and_act_as_it(server):
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE ROLE reader NOLOGIN")
        connection.execute("SET LOCAL ROLE reader")
        assert connection.execute("SELECT current_user").fetchone() == ("reader",)
        connection.rollback()


@pytest.mark.parametrize(
    ("name", "value"),
    [("fsync", "on"), ("server_encoding", "UTF8"), ("TimeZone", "UTC"), ("listen_addresses", "127.0.0.1")],
)
def test_settings_are_what_a_kept_database_needs(server, name, value):
    assert ask(server.superuser_url, f"SELECT current_setting('{name}')") == value


def test_the_order_of_texts_does_not_depend_on_the_machine(server):
    query = "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'palimpsest'"
    assert ask(server.superuser_url, query) == "bC.UTF-8"


def test_a_row_that_a_copy_breaks_off_at_is_not_quoted_in_the_log(server):
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE notes (note text CHECK (length(note) < 3))")
        with (
            pytest.raises(psycopg.errors.CheckViolation),
            connection.cursor() as cursor,
            cursor.copy("COPY notes FROM STDIN") as copy,
        ):
            copy.write_row(["somebody's text"])
        connection.rollback()
    log = (server.logs_dir / "postgres.log").read_text()
    assert "violates check constraint" in log
    assert "somebody's text" not in log


@pytest.mark.parametrize("password", ["", "wrong"])
def test_nobody_gets_in_without_the_password(server, password):
    with pytest.raises(psycopg.OperationalError, match=r"password"):
        psycopg.connect(server.url.replace(":hidden@", f":{password}@"))


def test_the_socket_in_the_data_folder_asks_for_the_password_too(server):
    assert (server.data_dir / f".s.PGSQL.{server.port}").exists()
    with pytest.raises(psycopg.OperationalError, match=r"password"):
        psycopg.connect(host=str(server.data_dir), port=server.port, user="postgres", dbname="postgres")


def test_a_folder_with_a_long_path_gets_no_socket(pristine, tmp_path):
    folder = tmp_path / ("long" * 20)
    shutil.copytree(pristine, folder / "postgres")
    with server_in(folder, durable=False) as running:
        assert ask(running.url, "SELECT 1") == 1
        assert not list(running.data_dir.glob(".s.PGSQL*"))


def test_others_cannot_look_into_the_data_folder(server):
    assert server.data_dir.stat().st_mode & 0o777 == 0o700


def test_a_second_start_of_the_same_object_does_nothing(server):
    before = server.process.pid
    assert server.start() is server
    assert server.process.pid == before


def test_a_committed_row_survives_a_crash_and_the_port_stays(kept):
    server = server_in(kept).start()
    try:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept VALUES (42)")
        address = server.url
        server.kill()
        assert not server.running
        server.start()
        assert server.url == address
        assert ask(server.url, "SELECT n FROM kept") == 42
    finally:
        server.stop()


def test_killing_the_launcher_leaves_no_orphan_and_loses_nothing(launchers, kept):
    launcher = launchers.python(LAUNCHER, kept)
    url = launcher.stdout.readline().strip()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    family = launchers.below(launcher.pid)
    assert len(family) > 5
    launcher.send_signal(signal.SIGKILL)
    assert launchers.gone(family)
    with server_in(kept) as server:
        assert ask(server.url, "SELECT count(*) FROM kept") == 1000


def test_a_first_start_that_was_cut_short_begins_anew(tmp_path):
    half_made = tmp_path / "postgres.new"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18\n")
    with server_in(tmp_path, durable=False) as server:
        assert ask(server.url, "SELECT 1") == 1
    assert not half_made.exists()


def test_a_wrong_password_for_a_kept_folder_is_told(kept):
    with pytest.raises(PartFailed, match="another password"):
        server_in(kept, password="other").start()


def test_a_damaged_folder_shows_the_servers_own_words(kept):
    (kept / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(PartFailed, match="incompatible") as caught:
        server_in(kept).start()
    assert "postgres.log" in str(caught.value)


def test_a_port_in_use_is_told_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is already in use"):
            server_in(tmp_path, port=port, durable=False).start()


def test_the_port_of_a_killed_server_is_given_to_nobody_else_and_it_comes_back_there(kept):
    with server_in(kept, durable=False) as server:
        port = server.port
        server.kill()
        with socket.socket() as other, pytest.raises(OSError, match="already in use"):
            other.bind(("127.0.0.1", port))  # as whoever takes a port without being asked to share it
        assert server.start().port == port
        assert ask(server.url, "SELECT 1") == 1


def test_missing_binaries_name_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BinariesMissing, match=r"palimpsest\[embedded\]"):
        server_in(tmp_path).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by Postgres")
def test_as_root_it_is_nobody_to_itself(server):
    # Postgres refuses to start for a process whose effective user is 0, so running at all is the proof.
    assert server._identity in ("namespace", "65534:65534")


@pytest.fixture
def open_folder():
    """A folder that every user of the machine may enter; pytest's own belong to whoever runs it."""
    folder = Path(tempfile.mkdtemp(prefix="palimpsest-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_namespaces_root_runs_it_as_nobody(open_folder, monkeypatch):
    monkeypatch.setattr(identity, "namespaces_work", lambda: False)
    with server_in(open_folder) as server:
        assert ask(server.url, "SELECT 1") == 1
        assert server.data_dir.stat().st_uid == ORDINARY_USER
    monkeypatch.undo()
    with server_in(open_folder) as server:
        assert server._identity == f"{ORDINARY_USER}:{ORDINARY_USER}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_roots_is_handed_to_nobody_when_namespaces_are_refused_later(open_folder, monkeypatch):
    with server_in(open_folder) as server, psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    monkeypatch.setattr(identity, "namespaces_work", lambda: False)
    with server_in(open_folder) as server:
        assert ask(server.url, "SELECT n FROM kept") == 42


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_nobody_cannot_reach_is_told(open_folder, monkeypatch):
    monkeypatch.setattr(identity, "namespaces_work", lambda: False)
    open_folder.chmod(0o700)
    with pytest.raises(PartFailed, match=f"cannot enter {open_folder}"):
        server_in(open_folder).start()


def interpreter_for(user: int) -> str | None:
    """An interpreter of this version that the user may run."""
    minor = f"python3.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/local/bin/{minor}", f"/usr/bin/{minor}"):
        probe = [candidate, "-c", "import psycopg, service.embedded"]
        try:
            subprocess.run(
                probe, user=user, extra_groups=[], env=source_path(), check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    return None


def source_path() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_runs_it_as_himself(launchers, open_folder):
    interpreter = interpreter_for(ORDINARY_USER)
    if interpreter is None:
        pytest.skip("no interpreter that an ordinary user may run")
    os.chown(open_folder, ORDINARY_USER, ORDINARY_USER)
    command = [interpreter, "-c", LAUNCHER, str(open_folder)]
    launcher = launchers.run(
        command, user=ORDINARY_USER, group=ORDINARY_USER, extra_groups=[], env=source_path()
    )
    family = check_server_of(launcher, launchers)
    assert all(Path(f"/proc/{pid}").stat().st_uid == ORDINARY_USER for pid in family)
    launcher.send_signal(signal.SIGKILL)
    assert launchers.gone(family)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_a_launcher_that_is_not_root_in_its_own_namespace_starts_it_directly(launchers, tmp_path):
    if not identity.namespaces_work():
        pytest.skip("no user namespaces here")
    become_ordinary = "from service.embedded import keeper; keeper._enter_user_namespace()"
    launcher = launchers.python(f"{become_ordinary}\n{LAUNCHER}", tmp_path)
    family = check_server_of(launcher, launchers)
    launcher.send_signal(signal.SIGKILL)
    assert launchers.gone(family)


def check_server_of(launcher, launchers) -> set[int]:
    url = launcher.stdout.readline().strip()
    assert url, launcher.stderr.read()
    assert ask(url, "SELECT 1") == 1
    return launchers.below(launcher.pid)
