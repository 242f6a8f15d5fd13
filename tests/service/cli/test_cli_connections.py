"""Where the service is and with what key; connections, answers and patience that are lost."""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.cli.problems import ExitCode
from service.embedded.state import write_private_json
from tests.service.cli.conftest import Palimpsest, key_of, run
from tests.service.cli.served import Relay

NOBODY = "http://127.0.0.1:1"
SOME_KEY = f"plm_{'0' * 12}_{'1' * 64}"


def test_without_any_service_named_the_ways_to_name_one_are_told() -> None:
    result = run("model", "list")
    assert result.code == ExitCode.ERROR
    for way in ("palimpsest login --url URL", "PALIMPSEST_API_KEY", "--state"):
        assert way in result.err


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PALIMPSEST_URL": NOBODY}, "PALIMPSEST_API_KEY is not set"),
        ({"PALIMPSEST_API_KEY": SOME_KEY}, "PALIMPSEST_URL is not set"),
        ({"PALIMPSEST_URL": "localhost:80", "PALIMPSEST_API_KEY": SOME_KEY}, "write http://host:port"),
        ({"PALIMPSEST_URL": f"{NOBODY}/?a=b", "PALIMPSEST_API_KEY": SOME_KEY}, "cannot be used"),
        ({"PALIMPSEST_URL": "http://me:word@host", "PALIMPSEST_API_KEY": SOME_KEY}, "cannot be used"),
        ({"PALIMPSEST_URL": NOBODY, "PALIMPSEST_API_KEY": "my-secret\n"}, "does not look like plm_"),
        ({"PALIMPSEST_PROFILE": "prod"}, "There is no profile 'prod'"),
    ],
)
def test_half_a_service_is_an_error_that_shows_no_secret(environment: dict[str, str], words: str) -> None:
    result = run("model", "list", **environment)
    assert result.code == ExitCode.ERROR
    assert words in result.err
    assert not any(secret in result.err for secret in ("my-secret", "word", "1" * 64))


def test_a_service_that_is_not_there_is_told_apart_by_the_exit_code() -> None:
    environment = {
        "PALIMPSEST_URL": NOBODY,
        "PALIMPSEST_API_KEY": SOME_KEY,
        "PALIMPSEST_PATIENCE_SECONDS": "0",
    }
    result = run("model", "list", **environment)
    assert result.code == ExitCode.UNREACHABLE
    assert f"{NOBODY} cannot be reached" in result.err
    assert SOME_KEY not in result.err


def test_a_login_is_kept_for_its_owner_only_and_used_from_then_on(
    client: TestClient, api_port: int, tmp_path: Path
) -> None:
    url, key = f"http://127.0.0.1:{api_port}", key_of(client)
    asked = run("login", "--url", url, given=f"{key}\n")
    piped = run("login", "--url", f"{url}/", "--profile", "staging", "--api-key", "-", given=f"{key}\n")
    of_environment = run("login", "--url", url, "--profile", "ci", PALIMPSEST_API_KEY=key)
    assert (asked.code, piped.code, of_environment.code) == (0, 0, 0)
    kept = tmp_path / "config" / "palimpsest" / "profiles.toml"
    assert str(kept) in asked.out.replace("\n", "")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert not any(
        key in text for result in (asked, piped, of_environment) for text in (result.out, result.err)
    )
    for options in ([], ["--profile", "staging"], ["--profile", "ci"]):
        assert run("model", "list", "--json", *options).json["data"] == []
    assert run("model", "list", PALIMPSEST_PROFILE="staging").code == 0
    assert run("model", "list", "--profile", "staging", "--state", tmp_path).code == ExitCode.ERROR


def test_a_login_with_a_key_that_the_service_does_not_know_keeps_nothing(
    api_port: int, tmp_path: Path
) -> None:
    result = run("login", "--url", f"http://127.0.0.1:{api_port}", given=f"{SOME_KEY}\n")
    assert result.code == ExitCode.ERROR
    assert SOME_KEY not in result.out + result.err
    assert not (tmp_path / "config").exists()


def test_the_state_folder_of_a_running_service_is_enough(
    client: TestClient, api_port: int, tmp_path: Path
) -> None:
    connection = {
        "url": f"http://127.0.0.1:{api_port}",
        "api_key": key_of(client),
        "database_url": "",
        "redis_url": "",
    }
    write_private_json(tmp_path / "connection.json", connection)
    secrets = {"postgres_password": "", "valkey_password": "", "key_pepper": ""}
    write_private_json(tmp_path / "secrets.json", secrets)
    assert run("model", "list", "--state", tmp_path, "--json").json["data"] == []
    stopped = run("model", "list", "--state", tmp_path / "elsewhere")
    assert stopped.code == ExitCode.ERROR
    assert "palimpsest up --state" in stopped.err


def test_a_damaged_profile_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config" / "palimpsest" / "profiles.toml"
    file.parent.mkdir(parents=True)
    file.write_text("nonsense")
    assert f"{file} cannot be read" in run("model", "list").err
    file.write_text("[default]\nurl = 'http://127.0.0.1:1'\n")
    assert "needs a url and an api_key" in run("model", "list").err


@pytest.mark.parametrize("status", [200, 404, 502])
def test_what_answers_but_is_no_palimpsest_is_unreachable_too(status: int) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "PALIMPSEST_URL": f"http://127.0.0.1:{server.server_port}", "PALIMPSEST_API_KEY": SOME_KEY,
            "PALIMPSEST_PATIENCE_SECONDS": "0",
        }  # fmt: skip
        result = run("model", "list", **environment)
        server.shutdown()
    assert result.code == ExitCode.UNREACHABLE
    assert f"HTTP {status}" in result.err


def test_a_creating_call_whose_answer_is_lost_is_sent_again_and_creates_once(
    palimpsest: Palimpsest, relay: Relay
) -> None:
    relay.answers_to_lose = 1
    patient = {"PALIMPSEST_URL": relay.url, "PALIMPSEST_PATIENCE_SECONDS": "30"}
    made = palimpsest("model", "create", "triage", "--base-model", "minilm-l6", "--json", **patient)
    assert (made.code, made.json["name"], relay.lost) == (0, "triage", 1)
    assert palimpsest("task", "create", "triage", "t", **patient).code == 0

    relay.answers_to_lose = 1
    row = json.dumps({"text": "one", "label": "a"})
    added = palimpsest("examples", "add", "triage", "t", "-", "--json", given=row, **patient)
    assert (added.code, relay.lost) == (0, 2)
    assert (added.json["accepted"], added.json["duplicates"]) == (1, 0), (
        "the first answer, not that of a second ingest"
    )


def test_an_act_whose_answer_is_lost_is_not_repeated_but_said_to_be_uncertain(
    palimpsest: Palimpsest, relay: Relay
) -> None:
    palimpsest("model", "create", "triage", "--base-model", "minilm-l6")
    relay.answers_to_lose = 1
    patient = {"PALIMPSEST_URL": relay.url, "PALIMPSEST_PATIENCE_SECONDS": "30"}
    result = palimpsest("model", "archive", "triage", "--yes", **patient)
    assert (result.code, relay.lost) == (ExitCode.UNREACHABLE, 1)
    assert "may have been carried out all the same" in result.err
    assert palimpsest("model", "show", "triage", "--json").json["archived_at"]


def test_a_key_whose_secret_was_lost_on_the_way_is_named(palimpsest: Palimpsest, relay: Relay) -> None:
    relay.answers_to_lose = 1
    patient = {"PALIMPSEST_URL": relay.url, "PALIMPSEST_PATIENCE_SECONDS": "30"}
    result = palimpsest("keys", "create", "--scopes", "read", **patient)
    assert (result.code, result.out) == (ExitCode.ERROR, "")
    [_own, *made] = reversed(palimpsest("keys", "list", "--json").json["data"])
    assert [f"palimpsest keys rotate {key['prefix']}" in result.err for key in made] == [True]


def test_reading_goes_on_when_the_service_is_back(palimpsest: Palimpsest, relay: Relay) -> None:
    relay.down = True
    threading.Thread(target=_bring_back, args=(relay,), daemon=True).start()
    result = palimpsest("model", "list", "--json", PALIMPSEST_URL=relay.url, PALIMPSEST_PATIENCE_SECONDS="60")
    assert result.json["data"] == []
    assert relay.lost >= 2


def _bring_back(relay: Relay) -> None:
    deadline = time.monotonic() + 60
    while relay.lost < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    relay.down = False


def test_completion_of_the_shell_knows_the_commands() -> None:
    environment = {
        **os.environ,
        "_PALIMPSEST_COMPLETE": "complete_bash",
        "COMP_WORDS": "palimpsest up",
        "COMP_CWORD": "1",
    }
    result = run(**environment)
    assert {"up", "update"} <= set(result.out.split())


def test_the_exit_codes_stand_in_the_help() -> None:
    helped = " ".join(run("--help", COLUMNS="300").out.split())
    for words in (
        "3 rejected",
        "4 failed or cancelled",
        "5 awaiting approval",
        "6 the service cannot be reached",
    ):
        assert words in helped


def test_a_login_leaves_profiles_with_odd_names_as_they_were(
    client: TestClient, api_port: int, tmp_path: Path
) -> None:
    url, key = f"http://127.0.0.1:{api_port}", key_of(client)
    file = tmp_path / "config" / "palimpsest" / "profiles.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'["prod.eu"]\nurl = "{url}"\napi_key = "{key}"\n')
    for _ in range(2):
        assert run("login", "--url", url, given=f"{key}\n").code == 0
    assert run("model", "list", "--profile", "prod.eu", "--json").json["data"] == []


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://host:port", "host:80", "http://me@host", "ftp://host"]
)
def test_an_address_that_cannot_be_one_is_said_to_be(url: str) -> None:
    result = run("model", "list", PALIMPSEST_URL=url, PALIMPSEST_API_KEY=SOME_KEY)
    assert result.code == ExitCode.ERROR
    assert "cannot be used; write http://host:port" in result.err
    assert SOME_KEY not in result.err
