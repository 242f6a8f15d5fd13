"""The command line: a newcomer is helped, and an expected failure is one line and an exit code."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import typer

from service.cli import main, parse_duration
from service.config import get_settings
from service.embedded.postgres import PostgresServer
from service.migrate import upgrade

SOURCE = Path(__file__).parents[3]
NOTHING_THERE = "postgresql://user:secret@127.0.0.1:1/none"


@dataclass(frozen=True)
class Result:
    """What a run of the command line left."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def one_line(self) -> str:
        """The single line of an expected failure."""
        assert self.returncode == 1
        assert self.stdout == ""
        lines = self.stderr.strip().splitlines()
        assert len(lines) == 1, self.stderr
        return lines[0]


@pytest.fixture
def palimpsest(monkeypatch, capsys):
    """Runs the command line in this process, with the settings of an environment of its own."""

    def run(*arguments: str, **environment: str) -> Result:
        for name, value in {"COLUMNS": "200", "NO_COLOR": "1", **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["palimpsest", *arguments])
        get_settings.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main()
        get_settings.cache_clear()
        printed = capsys.readouterr()
        return Result(int(ended.value.code or 0), printed.out, printed.err)

    return run


def palimpsest_process(*arguments: str) -> Result:
    """Runs a command that takes its process over."""
    result = subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return Result(result.returncode, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    with PostgresServer(folder / "postgres", logs_dir=folder, password="hidden", durable=False) as running:
        yield running


@pytest.fixture(scope="module")
def database_url(server) -> str:
    upgrade(server.url)
    return server.url


def test_the_version_is_printed(palimpsest):
    assert palimpsest("--version").stdout.startswith("palimpsest 0.")


def test_a_newcomer_is_pointed_at_the_one_command_that_starts_everything(palimpsest):
    assert "New here? Run palimpsest up" in palimpsest("--help").stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("up", "connection.json"),
        ("api", "palimpsest migrate"),
        ("worker", "SIGTERM"),
        ("sweeper", "lost workers"),
        ("migrate", "CREATEROLE"),
        ("keys create", "--tenant shop --scopes read,ingest,train"),
        ("keys list", "without their secrets"),
        ("keys rotate", "--overlap"),
        ("keys revoke", "at once"),
    ],
)
def test_every_command_explains_itself(palimpsest, command, words):
    result = palimpsest(*command.split(), "--help")
    assert result.returncode == 0
    assert words in result.stdout


def test_migrating_twice_changes_nothing(palimpsest, database_url):
    assert palimpsest("migrate", DATABASE_URL=database_url).returncode == 0


def test_a_key_is_made_listed_and_revoked(palimpsest, database_url):
    made = palimpsest(
        "keys",
        "create",
        "--tenant",
        "shop",
        "--scopes",
        "read, ingest",
        "--name",
        "nightly",
        "--json",
        DATABASE_URL=database_url,
    )
    key = json.loads(made.stdout)
    assert key["api_key"].startswith(f"plm_{key['prefix']}_")
    assert key["scopes"] == ["ingest", "read"]
    listed = palimpsest("keys", "list", "--tenant", "shop", DATABASE_URL=database_url).stdout
    assert f"{key['prefix']}  nightly  ingest,read  expires never" in listed
    assert key["api_key"] not in listed
    revoked = palimpsest("keys", "revoke", key["prefix"], "--tenant", "shop", DATABASE_URL=database_url)
    assert revoked.stdout == f"The key 'nightly' ({key['prefix']}) is revoked.\n"
    rows = json.loads(
        palimpsest("keys", "list", "--tenant", "shop", "--json", DATABASE_URL=database_url).stdout
    )
    assert rows[0]["revoked_at"]


def test_a_key_alone_is_all_that_goes_to_standard_output(palimpsest, database_url):
    made = palimpsest(
        "keys",
        "create",
        "--tenant",
        "a",
        "--scopes",
        "read",
        "--expires-in",
        "90d",
        DATABASE_URL=database_url,
    )
    assert made.stdout.startswith("plm_")
    assert len(made.stdout.split()) == 1


def test_another_tenants_key_is_neither_listed_nor_revoked(palimpsest, database_url):
    made = palimpsest(
        "keys", "create", "--tenant", "ours", "--scopes", "read", "--json", DATABASE_URL=database_url
    )
    prefix = json.loads(made.stdout)["prefix"]
    assert (
        palimpsest("keys", "list", "--tenant", "theirs", DATABASE_URL=database_url).stdout
        == "theirs has no keys.\n"
    )
    result = palimpsest("keys", "revoke", prefix, "--tenant", "theirs", DATABASE_URL=database_url)
    assert f"No key '{prefix}'" in result.one_line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tenant", "a", "--scopes", "read,fly"], "Unknown scope: fly"),
        (["--tenant", "a", "--scopes", ","], "at least one scope"),
        (["--tenant", "No Such", "--scopes", "read"], "cannot name a tenant"),
    ],
)
def test_a_key_that_cannot_be_is_refused_with_the_reason(palimpsest, database_url, arguments, words):
    assert words in palimpsest("keys", "create", *arguments, DATABASE_URL=database_url).one_line


def test_a_database_that_does_not_answer_is_named_without_its_password(palimpsest):
    line = palimpsest("migrate", DATABASE_URL=NOTHING_THERE).one_line
    assert "postgresql://user:***@127.0.0.1:1/none does not answer" in line
    assert "secret" not in line


def test_a_database_without_the_schema_sends_to_migrate(palimpsest, server):
    url = server.url_for("postgres", "postgres")
    line = palimpsest("keys", "list", "--tenant", "a", DATABASE_URL=url).one_line
    assert "run 'palimpsest migrate' first" in line


def test_an_unknown_revision_is_one_line(palimpsest, database_url):
    assert "nonesuch" in palimpsest("migrate", "--to", "nonesuch", DATABASE_URL=database_url).one_line


def test_an_unreadable_address_is_one_line(palimpsest):
    assert "DATABASE_URL cannot be read" in palimpsest("migrate", DATABASE_URL="nonsense").one_line


def test_a_wrong_setting_is_named_as_the_operator_wrote_it(palimpsest):
    line = palimpsest("api", PALIMPSEST_MAX_ATTEMPTS="0").one_line
    assert "PALIMPSEST_MAX_ATTEMPTS is wrong" in line


@pytest.mark.parametrize("command", ["api", "up"])
def test_a_port_in_use_is_one_line(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ["--state", str(tmp_path)] if command == "up" else []
        result = palimpsest_process(command, "--port", port, *options)
        assert f"port {port} on 127.0.0.1 is already in use" in result.one_line


def test_a_host_that_is_not_this_machine_is_one_line(tmp_path):
    result = palimpsest_process("up", "--host", "192.0.2.1", "--state", str(tmp_path))
    assert "cannot listen on 192.0.2.1" in result.one_line


def test_a_host_that_does_not_exist_is_one_line(tmp_path):
    result = palimpsest_process("up", "--host", "no.such.host.invalid", "--state", str(tmp_path))
    assert "cannot listen on no.such.host.invalid" in result.one_line


@pytest.mark.parametrize(
    ("text", "length"),
    [("12h", timedelta(hours=12)), ("90d", timedelta(days=90)), ("52w", timedelta(weeks=52))],
)
def test_a_length_of_time_is_a_number_and_a_unit(text, length):
    assert parse_duration(text) == length


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "0d", "1y", "1d2h", "1000000d"])
def test_anything_else_is_no_length_of_time(text):
    with pytest.raises(typer.BadParameter):
        parse_duration(text)


def test_the_command_line_loads_neither_the_workers_nor_the_training_libraries():
    code = "import sys, service.cli, service.embedded; print({'torch', 'transformers', 'peft', 'workers'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE
    )
    assert result.stdout == "set()\n"


def test_a_key_is_rotated_with_and_without_an_overlap(palimpsest, database_url):
    arguments = ["--tenant", "shop", "--json"]
    made = palimpsest("keys", "create", "--scopes", "read", *arguments, DATABASE_URL=database_url)
    key = json.loads(made.stdout)
    rotated = json.loads(
        palimpsest(
            "keys", "rotate", key["prefix"], "--overlap", "12h", *arguments, DATABASE_URL=database_url
        ).stdout
    )
    assert rotated["id"] == key["id"]
    assert rotated["api_key"] != key["api_key"]
    assert rotated["previous_secret_valid_until"]
    alone = palimpsest("keys", "rotate", key["id"], "--tenant", "shop", DATABASE_URL=database_url)
    assert alone.stdout.startswith(f"plm_{key['prefix']}_")
    assert len(alone.stdout.splitlines()) == 1
    wrong = palimpsest("keys", "rotate", key["id"], "--overlap", "soon", *arguments)
    assert wrong.returncode == 2
    assert "--overlap" in wrong.stderr
