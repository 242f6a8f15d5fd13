"""One signed request to a receiver: bounded in time and size, to a checked address, following nothing.

httpcore instead of httpx: it lets the connection be made to an address of our choice, while `Host`, SNI and the certificate
keep to the name, and lets every read know how much of the request's time is left. It reads no proxy from the environment.
"""

import json
import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import httpcore
import httpx
from standardwebhooks.webhooks import Webhook as Signer

from service.version import VERSION
from service.webhooks.addresses import Refused, parse_url, resolve

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
TOTAL_SECONDS = 15.0  # of a whole request, once the name is resolved
MOST_RESPONSE_BYTES = 64 * 1024  # read so that the connection ends well, and thrown away


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent; `id` and content are the same in every attempt."""

    id: str
    type: str
    happened_at: datetime
    data: Mapping[str, Any]

    @property
    def body(self) -> str:
        """The JSON that is signed and sent."""
        content = {"type": self.type, "timestamp": self.happened_at.isoformat(), "data": dict(self.data)}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an attempt: a status, or in words why there is none."""

    status_code: int | None
    error: str | None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_success(self) -> bool:
        """Whether the receiver took the message."""
        return self.error is None


def send(message: Message, *, url: str, secrets: Sequence[str], now: datetime) -> Answer:
    """Sends a message once, signed with each secret at the moment `now`; whatever goes wrong is part of the answer.

    Nothing is sent without a signature.
    """
    if not secrets:
        return Answer(None, "not sent: the webhook's secret was stored under another key pepper; rotate it")
    body, now = message.body, now.astimezone(UTC)  # the signer takes any time for one of UTC
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"palimpsest/{VERSION}",
        "webhook-id": message.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Signer(secret).sign(message.id, now, body) for secret in secrets),
    }
    try:
        return _post(parse_url(url), headers=headers, body=body.encode())
    except Refused as refused:
        return Answer(None, f"not sent: {refused}")
    except socket.gaierror:
        return Answer(None, "not sent: its host cannot be resolved")
    except httpcore.ConnectTimeout:
        return Answer(None, f"no connection within {CONNECT_SECONDS:g} s")
    except httpcore.TimeoutException:
        return Answer(None, f"no answer within {READ_SECONDS:g} s")
    except httpcore.ConnectError as error:
        return Answer(None, f"no connection: {_reason(error)}")
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        return Answer(None, f"the connection broke: {_reason(error)}")


def _post(url: httpx.URL, *, headers: Mapping[str, str], body: bytes) -> Answer:
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    timeouts = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS}
    with (
        httpcore.ConnectionPool(ssl_context=_certificates(), network_backend=CheckedBackend()) as pool,
        pool.stream(
            "POST", target, headers=[("Host", url.netloc.decode("ascii")), *headers.items()], content=body,
            extensions={"timeout": timeouts},
        ) as response,
    ):  # fmt: skip
        _read_on(response)
        given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return Answer(response.status, _fault(response.status), given)


def _fault(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"answered {status}; redirects are not followed, change the webhook's url"
    return f"answered {status}"


def _read_on(response: httpcore.Response) -> None:
    """Reads a bounded part of the body. The status is known by now, so nothing that goes wrong here matters."""
    size = 0
    try:
        for piece in response.iter_stream():
            size += len(piece)
            if size > MOST_RESPONSE_BYTES:
                break
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        return


@lru_cache
def _certificates() -> ssl.SSLContext:
    """Whom to believe: the public authorities, and those that the machine knows besides."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]


class CheckedBackend(httpcore.SyncBackend):
    """Connects to the addresses that webhooks may call and to no others, within the time of one request."""

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """Resolves and checks the host, then tries its addresses one after the other."""
        addresses = resolve(host, port)
        deadline = time.monotonic() + TOTAL_SECONDS
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in addresses:
            try:
                left = _left(deadline, timeout, httpcore.ConnectTimeout)
                stream = super().connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return DeadlineStream(stream, deadline)
        raise failure


class DeadlineStream(httpcore.NetworkStream):
    """A connection of which no read or write outlasts the request's deadline, however slowly bytes trickle in."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Reads what has come. Raises `httpcore.ReadTimeout`."""
        return self._stream.read(max_bytes, _left(self._deadline, timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Writes all of the buffer. Raises `httpcore.WriteTimeout`."""
        self._stream.write(buffer, _left(self._deadline, timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Shakes hands. Raises `httpcore.ConnectTimeout`."""
        left = _left(self._deadline, timeout, httpcore.ConnectTimeout)
        return DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks of the socket beneath."""
        return self._stream.get_extra_info(info)


def _left(deadline: float, timeout: float | None, late: type[Exception]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise late(f"more than {TOTAL_SECONDS:g} s")
    return left if timeout is None else min(left, timeout)
