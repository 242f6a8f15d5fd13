"""The command line over a real socket, in this process."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service.cli import app
from tests.service.cli.served import Relay, serving


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.out)


Palimpsest = Callable[..., Result]


@pytest.fixture(scope="session")
def api_port(database_url: str, redis_url: str) -> Iterator[int]:
    """The real API on a real socket."""
    with serving() as port:
        yield port


@pytest.fixture(autouse=True)
def nobodys_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without profiles, and an environment that names no service."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("PALIMPSEST_PATIENCE_SECONDS", "0.5")
    for name in ("URL", "API_KEY", "PROFILE"):
        monkeypatch.delenv(f"PALIMPSEST_{name}", raising=False)


def key_of(client: TestClient) -> str:
    """The API key that a client of the tests calls with."""
    return str(client.headers["Authorization"]).removeprefix("Bearer ")


def run(*arguments: object, given: str | bytes | None = None, **environment: str) -> Result:
    """Runs a command in this process; a failure that nobody expected is raised."""
    ran = CliRunner().invoke(app, [str(one) for one in arguments], input=given, env=environment)
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return Result(ran.exit_code, ran.stdout, ran.stderr)


@pytest.fixture
def palimpsest(client: TestClient, api_port: int) -> Palimpsest:
    """Runs commands against the API with an all-scopes key of `acme`; its key never shows."""
    where = {"PALIMPSEST_URL": f"http://127.0.0.1:{api_port}", "PALIMPSEST_API_KEY": key_of(client)}

    def palimpsest(*arguments: object, given: str | bytes | None = None, **environment: str) -> Result:
        result = run(*arguments, given=given, **{**where, **environment})
        assert where["PALIMPSEST_API_KEY"].rpartition("_")[2] not in result.out + result.err
        return result

    return palimpsest


@pytest.fixture
def relay(api_port: int) -> Iterator[Relay]:
    """A way to the API that can lose connections and answers."""
    relay = Relay(api_port)
    yield relay
    relay.close()
