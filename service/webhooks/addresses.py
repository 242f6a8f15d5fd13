"""What webhooks may call: addresses outside of the service's own network, unless the operator allows more.

A name is resolved here, each of its addresses is judged, and connections go to the very addresses that were judged: a name
that means something else a moment later (DNS rebinding) changes nothing.
"""

import asyncio
import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx
from anyio import CapacityLimiter, fail_after, to_thread

from service.config import get_settings
from service.errors import Unprocessable

Address = IPv4Address | IPv6Address
MAX_URL_LENGTH = 2048
PORTS = {"http": 80, "https": 443}
RESOLVING_SECONDS = 5.0
# What clouds serve their machines under addresses that look like anybody's or like a private network's.
NEVER = frozenset(map(ip_address, ("168.63.129.16", "192.0.0.192", "fd00:ec2::254")))
NAT64 = IPv6Network("64:ff9b::/96")  # carries an IPv4 address in its last four bytes (RFC 6052)


class Refused(Exception):
    """An address that webhooks may not call; the message says why, and never what a name resolved to."""


def check_url(url: str) -> None:
    """Checks an address that a webhook is to call, its name's resolution included.

    Raises `Unprocessable`: for what is no such address, holds credentials, or leads where webhooks may not go.
    """
    try:
        parsed = parse_url(url)
        resolve(parsed.raw_host.decode("ascii"), parsed.port or PORTS[parsed.scheme])
    except (Refused, OSError) as problem:
        reason = problem if isinstance(problem, Refused) else "its host cannot be resolved"
        raise Unprocessable(
            f"A webhook cannot call this address: {reason}.", code="webhook_url_refused", param="url"
        ) from None


async def check_in_time(url: str) -> None:
    """Does as `check_url`, in threads of its own: names that are never resolved hold up nobody's requests.

    Raises `Unprocessable`, also where the name takes too long.
    """
    try:
        with fail_after(RESOLVING_SECONDS):
            await to_thread.run_sync(
                check_url, url, limiter=_resolvers(asyncio.get_running_loop()), abandon_on_cancel=True
            )
    except TimeoutError:
        raise Unprocessable(
            f"A webhook cannot call this address: its host was not resolved within {RESOLVING_SECONDS:g} s.",
            code="webhook_url_refused", param="url",
        ) from None  # fmt: skip


@lru_cache
def _resolvers(_loop: asyncio.AbstractEventLoop) -> CapacityLimiter:
    return CapacityLimiter(4)


def parse_url(url: str) -> httpx.URL:
    """Reads an address as it will be called. Raises `Refused` for its form."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise Refused("it is not a URL") from None
    allowed = ("http", "https") if get_settings().webhook_allow_http else ("https",)
    if parsed.scheme not in allowed or not parsed.host:
        raise Refused(f"it must begin with {' or '.join(f'{scheme}://' for scheme in allowed)} and a host")
    if parsed.userinfo:
        raise Refused("it holds a user name or password; verify the signature instead")
    if parsed.port == 0:
        raise Refused("port 0 cannot be called")
    return parsed


def without_path(url: str) -> str:
    """The address as those see it who may not call it: `https://hooks.example.com/…`."""
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode()}/…"


def resolve(host: str, port: int) -> list[str]:
    """Returns the addresses of a host, in the order to try them. Raises `Refused` if one of them is off limits, `OSError`
    where the name has none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise Refused("its host is not a name") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if reason := objection(ip_address(address), allow_private=get_settings().webhook_allow_private):
            raise Refused(f"its host leads to {reason}")
    return addresses


def objection(address: Address, *, allow_private: bool) -> str | None:
    """Says what is wrong with calling an address; None where nothing is.

    With `allow_private` loopback and private networks may be called. Link-local addresses never: clouds hand out
    credentials there.
    """
    address = _within(address)
    if address in NEVER or address.is_link_local or address.is_multicast or address.is_unspecified:
        return "a link-local, multicast or unspecified address"
    is_site_local = isinstance(address, IPv6Address) and address.is_site_local
    if address.is_loopback or is_site_local or (address.is_private and not address.is_reserved):
        return None if allow_private else "a private or loopback address"
    if not address.is_global or address.is_reserved:
        return "an address that is not public"
    return None


def _within(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
