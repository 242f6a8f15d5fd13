"""The state folder: one launcher at a time, private secrets, no file half written."""

import json
import os
import signal
import stat

import pytest

from service.embedded.errors import StateFolderLocked, StateFolderUnusable
from service.embedded.state import Connection, StateFolder, write_private_json

HOLDER = """
import os, sys, time
from pathlib import Path
from service.embedded.processes import ChildProcess, Command
from service.embedded.state import StateFolder
state = StateFolder(Path(sys.argv[1])).open()
state.announce("http://127.0.0.1:1234")
if sys.argv[2:]:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"
    command = Command("part", [sys.executable, "-c", stubborn], state.logs / "part.log", death_signal=15)
    ChildProcess(command, hold=[state.lock]).start()
    time.sleep(0.5)
print(os.getpid(), flush=True)
time.sleep(300)
"""


def test_a_second_launcher_is_refused_with_the_first_ones_pid_and_address(launchers, tmp_path):
    holder = launchers.python(HOLDER, tmp_path)
    pid = holder.stdout.readline().strip()
    with pytest.raises(StateFolderLocked, match=rf"process {pid}, which serves http://127.0.0.1:1234; stop"):
        StateFolder(tmp_path).open()


def test_a_killed_launchers_folder_is_free_once_its_last_process_is_gone(launchers, tmp_path):
    holder = launchers.python(HOLDER, tmp_path, "with a part that ends late")
    holder.stdout.readline()
    family = launchers.below(holder.pid)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert any(map(launchers.alive, family))
    with StateFolder(tmp_path):
        assert not any(map(launchers.alive, family))


def test_a_closed_folder_can_be_opened_again(tmp_path):
    with StateFolder(tmp_path):
        pass
    with StateFolder(tmp_path), pytest.raises(StateFolderLocked):
        StateFolder(tmp_path).open()


def test_secrets_are_the_same_after_a_restart_and_never_the_same_twice(tmp_path):
    with StateFolder(tmp_path / "a") as state:
        state.keep_api_key("plm_first")
        first = state.secrets
    with StateFolder(tmp_path / "a") as state:
        assert state.secrets == first
        assert state.secrets.api_key == "plm_first"
    with StateFolder(tmp_path / "b") as state:
        other = state.secrets
    assert len({*vars_of(first), *vars_of(other)} - {None, "plm_first"}) == 6


def vars_of(secrets) -> list[str | None]:
    return [getattr(secrets, name) for name in type(secrets).__slots__]


def test_files_with_secrets_are_for_the_owner_alone(tmp_path):
    os.umask(before := os.umask(0))
    with StateFolder(tmp_path / "state") as state:
        state.publish(Connection("http://127.0.0.1:1", "plm_key", "postgresql://…", "redis://…"))
        for file in (state.secrets_file, state.connection_file, state.lock_file):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        for folder in (state.artifacts, state.logs, state.work, state.spool):
            assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0, folder
        assert stat.S_IMODE(state.path.stat().st_mode) & 0o066 == 0
    assert before == os.umask(before)


def test_the_connection_file_holds_what_a_client_needs_and_goes_with_the_stack(tmp_path):
    with StateFolder(tmp_path) as state:
        state.publish(Connection("http://127.0.0.1:1", "plm_key", "postgresql://…", "redis://…"))
        assert json.loads(state.connection_file.read_text()) == {
            "url": "http://127.0.0.1:1",
            "api_key": "plm_key",
            "database_url": "postgresql://…",
            "redis_url": "redis://…",
        }
    assert not state.connection_file.exists()


def test_a_stale_connection_file_is_gone_as_soon_as_the_folder_is_opened(tmp_path):
    (tmp_path / "connection.json").write_text("{}")
    with StateFolder(tmp_path) as state:
        assert not state.connection_file.exists()


def test_damaged_secrets_are_told_and_kept(tmp_path):
    (tmp_path / "secrets.json").write_text('{"postgres_password": "x"')
    with pytest.raises(StateFolderUnusable, match=r"secrets.json cannot be used: it is damaged"):
        StateFolder(tmp_path).open()
    assert (tmp_path / "secrets.json").read_text() == '{"postgres_password": "x"'


def test_lost_secrets_are_not_replaced_while_a_database_needs_them(tmp_path):
    (tmp_path / "postgres").mkdir()
    with pytest.raises(StateFolderUnusable, match="put it back"):
        StateFolder(tmp_path).open()
    assert not (tmp_path / "secrets.json").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StateFolderUnusable, match="Not a directory"):
        StateFolder(tmp_path / "file" / "state").open()


def test_a_failed_open_leaves_the_folder_free(tmp_path):
    (tmp_path / "secrets.json").write_text("[]")
    with pytest.raises(StateFolderUnusable):
        StateFolder(tmp_path).open()
    (tmp_path / "secrets.json").unlink()
    with StateFolder(tmp_path):
        pass


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.json"
    write_private_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_private_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]
