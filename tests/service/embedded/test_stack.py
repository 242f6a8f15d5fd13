"""`palimpsest up`: one command to a service that answers, and nothing lost or left over, however it ends."""

import http.client
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from service.embedded import PostgresServer, Stack, ValkeyServer
from service.embedded.ports import hold_port
from service.embedded.state import read_running

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_given")]

UP_SECONDS = 120.0
MODEL = {"name": "kept", "base_model": "minilm-l6", "task_type": "text-classification"}


def call(url: str, method: str, path: str, *, api_key: str = "", body: object = None) -> tuple[int, dict]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
    connection.request(method, path, body=json.dumps(body) if body else None, headers=headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def up(launchers, state: Path, *options: object):
    """Starts `palimpsest up` and returns it with what it published."""
    published = state / "connection.json"
    # For an instant after a kill -9 the dead launcher's file may still be there.
    stale = text_of(published)
    launcher = launchers.palimpsest("up", "--state", state, *options)
    assert launchers.until(
        lambda: text_of(published) not in (None, stale) or launcher.poll() is not None, seconds=UP_SECONDS
    )
    assert launcher.poll() is None, launcher.communicate()
    return launcher, json.loads(published.read_text())


def text_of(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_up_serves_refuses_a_second_and_stops_cleanly(launchers, tmp_path, stop_signal):
    launcher, connection = up(launchers, tmp_path)
    family = launchers.below(launcher.pid)
    assert call(connection["url"], "GET", "/readyz")[0] == 200
    assert call(connection["url"], "GET", "/v1/models", api_key=connection["api_key"])[0] == 200

    second = launchers.palimpsest("up", "--state", tmp_path)
    _, error = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"in use by process {launcher.pid}, which serves {connection['url']}" in error
    assert (tmp_path / "connection.json").exists()

    launcher.send_signal(stop_signal)
    printed, error = launcher.communicate(timeout=60)
    assert (launcher.returncode, error) == (0, "")
    assert connection["url"] in printed
    assert printed.endswith("Stopped.\n")
    assert not (tmp_path / "connection.json").exists()
    assert launchers.gone(family, seconds=0.5)


def test_after_kill_9_nothing_runs_and_nothing_is_lost(launchers, tmp_path):
    launcher, before = up(launchers, tmp_path)
    status, _ = call(before["url"], "POST", "/v1/models", api_key=before["api_key"], body=MODEL)
    assert status == 201
    redis.Redis.from_url(before["redis_url"]).set("kept", "42")
    family = launchers.below(launcher.pid)
    assert len(family) > 10

    launcher.send_signal(signal.SIGKILL)
    assert launchers.gone(family)
    assert not (tmp_path / "connection.json").exists()

    _, after = up(launchers, tmp_path)
    assert after["api_key"] == before["api_key"]
    assert call(after["url"], "GET", "/v1/models/kept", api_key=after["api_key"])[0] == 200
    assert redis.Redis.from_url(after["redis_url"]).get("kept") == b"42"


def test_an_up_right_after_a_kill_9_waits_for_the_old_processes(launchers, tmp_path):
    launcher, before = up(launchers, tmp_path, "--workers", 0)
    launcher.send_signal(signal.SIGKILL)
    _, after = up(launchers, tmp_path, "--workers", 0)
    assert call(after["url"], "GET", "/v1/models", api_key=before["api_key"])[0] == 200


def test_a_stop_while_starting_leaves_nothing(launchers, tmp_path):
    launcher = launchers.palimpsest("up", "--state", tmp_path)
    assert launcher.stdout.readline().startswith("Postgres")
    family = launchers.below(launcher.pid)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 0
    assert launchers.gone(family, seconds=0.5)


def test_a_killed_api_comes_back_on_its_port_and_refuses_no_request_meanwhile(launchers, tmp_path):
    said: list[str] = []
    with hold_port() as held:
        port = held.getsockname()[1]
        with Stack(tmp_path, port=port, workers=0, say=said.append) as stack:
            assert stack.url == f"http://127.0.0.1:{port}"
            stack.api.kill()
            assert call(stack.url, "GET", "/livez")[0] == 200
            assert launchers.until(lambda: "API runs again" in said)


def test_a_killed_postgres_comes_back_with_what_it_held(launchers, tmp_path):
    said: list[str] = []
    with Stack(tmp_path, workers=0, say=said.append) as stack:
        assert call(stack.url, "POST", "/v1/models", api_key=stack.api_key, body=MODEL)[0] == 201
        stack.postgres.kill()
        assert launchers.until(lambda: "Postgres runs again" in said, seconds=60)
        assert launchers.until(lambda: call(stack.url, "GET", "/readyz")[0] == 200, seconds=30)
        assert call(stack.url, "GET", "/v1/models/kept", api_key=stack.api_key)[0] == 200


def test_given_addresses_replace_the_embedded_parts(tmp_path, monkeypatch):
    own = tmp_path / "own"
    with (
        PostgresServer(own / "postgres", logs_dir=own, password="theirs", durable=False) as postgres,
        ValkeyServer(own / "valkey", logs_dir=own, password="theirs") as valkey,
    ):
        monkeypatch.setenv("DATABASE_URL", postgres.url)
        monkeypatch.setenv("REDIS_URL", valkey.url)
        monkeypatch.setenv("ARTIFACT_URL", (own / "artifacts").as_uri())
        with Stack(tmp_path / "state", workers=0) as stack:
            assert (stack.postgres, stack.valkey) == (None, None)
            assert (stack.database_url, stack.redis_url) == (postgres.url, valkey.url)
            assert call(stack.url, "GET", "/v1/models", api_key=stack.api_key)[0] == 200
            first = stack.api_key
        assert not (tmp_path / "state" / "postgres").exists()
        with psycopg.connect(postgres.superuser_url, autocommit=True) as connection:
            connection.execute("DELETE FROM api_keys")
        with Stack(tmp_path / "state", workers=0) as stack:
            assert stack.api_key != first
            assert call(stack.url, "GET", "/v1/models", api_key=stack.api_key)[0] == 200


def test_a_database_that_does_not_answer_is_told_in_the_migrations_own_words(tmp_path, launchers):
    environment = {**os.environ, "DATABASE_URL": "postgresql://user:secret@127.0.0.1:1/none"}
    command = [sys.executable, "-m", "service.cli", "up", "--state", str(tmp_path)]
    launcher = launchers.run(command, env=environment)
    _, error = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "does not answer" in error
    assert "secret" not in error
    assert "Traceback" not in error


def test_no_secret_stands_in_a_command_line_or_a_log(launchers, tmp_path):
    launcher = launchers.palimpsest("up", "--state", tmp_path, "--workers", "0")
    seen: set[bytes] = set()

    def look() -> bool:
        for pid in launchers.below(launcher.pid) | {launcher.pid}:
            with suppress(FileNotFoundError, ProcessLookupError):
                seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
        return text_of(tmp_path / "connection.json") is not None

    assert launchers.until(look, seconds=UP_SECONDS)
    connection, secrets = read_running(tmp_path)
    status, made = call(
        connection.url, "POST", "/v1/keys", api_key=connection.api_key, body={"name": "n", "scopes": ["read"]}
    )
    assert status == 201
    assert call(connection.url, "GET", "/v1/models", api_key=made["api_key"])[0] == 200
    assert call(connection.url, "GET", "/v1/models", api_key=made["api_key"][:-1] + "!")[0] == 401
    look()
    launcher.send_signal(signal.SIGTERM)
    printed = "".join(launcher.communicate(timeout=30))
    logs = [path.read_text(errors="replace") for path in sorted((tmp_path / "logs").iterdir())]
    told = "\n".join([printed, *logs, *(line.decode(errors="replace") for line in seen)])
    assert any(b"postgres" in line for line in seen)
    assert any("uvicorn" in text for text in logs)
    keys = [key.split("_", 2)[2] for key in (connection.api_key, made["api_key"])]  # plm_PREFIX_SECRET
    assert not [secret for secret in (*astuple(secrets), *keys) if secret in told]
