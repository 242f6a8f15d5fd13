"""The profile file: addresses and API keys by name, for its owner's eyes only."""

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import typer

from service.cli.problems import CallFailed

DEFAULT = "default"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
KEY = re.compile(r"plm_[0-9A-Za-z]+_[0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Target:
    """Where the service is and the key to call it with; `source` says where both are from."""

    url: str
    api_key: str = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        if not _usable(self.url):
            raise CallFailed(
                f"The address of {self.source} cannot be used; write http://host:port or https://host"
            )
        if KEY.fullmatch(self.api_key) is None:
            raise CallFailed(f"The API key of {self.source} does not look like plm_<prefix>_<secret>.")


def _usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        named = parts.hostname and parts.port != 0
    except ValueError:  # half an IPv6 address, a port that is no number
        return False
    return (
        parts.scheme in ("http", "https") and bool(named) and not parts.username and not set("?#") & set(url)
    )


def profile_file() -> Path:
    """Where profiles are kept: `profiles.toml` in the user's configuration folder, as XDG has it."""
    return Path(typer.get_app_dir("palimpsest")) / "profiles.toml"


def read_profile(name: str) -> Target | None:
    """The profile of that name, None where there is none.

    Raises:
        CallFailed: the file or the profile cannot be read.
    """
    profile = _read().get(name)
    if profile is None:
        return None
    source = f"the profile '{name}' in {profile_file()}"
    if not {"url", "api_key"} <= profile.keys():
        raise CallFailed(f"{source} needs a url and an api_key; run 'palimpsest login --profile {name}'")
    return Target(url=profile["url"], api_key=profile["api_key"], source=source)


def keep_profile(name: str, target: Target) -> Path:
    """Write the profile, beside the others of the file; only its owner may read the file."""
    from service.embedded.state import write_private_text

    if NAME.fullmatch(name) is None:
        raise CallFailed("A profile's name has letters, digits, '_' and '-', 64 at most.")
    profiles = {**_read(), name: {"url": target.url, "api_key": target.api_key}}
    path = profile_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private_text(path, "\n".join(_as_toml(name, profiles[name]) for name in sorted(profiles)))
    return path


def _read() -> dict[str, dict[str, str]]:
    path = profile_file()
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CallFailed(f"{path} cannot be read: {error}") from None
    return {
        name: {key: value for key, value in profile.items() if isinstance(value, str)}
        for name, profile in profiles.items()
        if isinstance(profile, dict)
    }


def _as_toml(name: str, profile: dict[str, str]) -> str:
    # What JSON makes of a string without control characters is a string of TOML too.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in profile.items()]
    return "\n".join([f"[{json.dumps(name, ensure_ascii=False)}]", *lines, ""])
