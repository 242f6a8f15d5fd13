"""Which service a command calls, and with which key."""

from pathlib import Path
from typing import TYPE_CHECKING

from service.cli.problems import CallFailed
from service.cli.profiles import DEFAULT, Target, read_profile

if TYPE_CHECKING:
    from service.cli.client import Api
    from service.config import ClientSettings

NOWHERE = """No service is named. Either
  run 'palimpsest login --url URL', which asks for the API key and keeps both, or
  set PALIMPSEST_URL and PALIMPSEST_API_KEY, or
  give the --state folder of a running 'palimpsest up'."""


def connect(*, profile: str | None, state: Path | None) -> "Api":
    """A client of the service that options, environment or profile file name, in this order.

    Address and key come from one and the same place, so that no key is sent to another's address.

    Raises:
        CallFailed: none of them names one.
    """
    from service.cli.client import Api
    from service.config import ClientSettings

    settings = ClientSettings()
    target = _target(settings, profile=profile, state=state)
    return Api(target, patience_seconds=settings.patience_seconds)


def _target(settings: "ClientSettings", *, profile: str | None, state: Path | None) -> Target:
    if profile is not None and state is not None:
        raise CallFailed("--profile and --state name two services; give one of them.")
    if state is not None:
        return _of_state(state)
    if profile is None and (settings.url or settings.api_key):
        return _of_environment(settings)
    named = profile or settings.profile
    found = read_profile(named or DEFAULT)
    if found is None:
        raise CallFailed(
            f"There is no profile '{named}'; 'palimpsest login --profile {named} --url URL' makes it."
            if named
            else NOWHERE
        )
    return found


def _of_state(state: Path) -> Target:
    from service.embedded.errors import EmbeddedError
    from service.embedded.state import read_running

    try:
        connection, _secrets = read_running(state)
    except EmbeddedError as error:
        raise CallFailed(str(error)) from None
    return Target(url=connection.url, api_key=connection.api_key, source=f"{state}/connection.json")


def _of_environment(settings: "ClientSettings") -> Target:
    if not settings.url or settings.api_key is None:
        missing = "PALIMPSEST_API_KEY" if settings.url else "PALIMPSEST_URL"
        raise CallFailed(f"{missing} is not set; PALIMPSEST_URL and PALIMPSEST_API_KEY go together.")
    key = settings.api_key.get_secret_value().strip()
    return Target(url=settings.url, api_key=key, source="PALIMPSEST_URL and PALIMPSEST_API_KEY")
