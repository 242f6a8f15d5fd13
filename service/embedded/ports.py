"""Free ports and listening sockets on this machine."""

import errno
import socket

from service.embedded.errors import AddressUnusable, PortInUse

LOOPBACK = "127.0.0.1"


def free_port(host: str = LOOPBACK) -> int:
    """A port nobody listens on at this moment. Another process may take it first, so callers try again."""
    with socket.create_server((host, 0), family=_family(host, 0)) as listener:
        return int(listener.getsockname()[1])


def require_free(host: str, port: int) -> None:
    """Check that a port can be listened on.

    Raises:
        PortInUse: something else listens there.
        AddressUnusable: the host is not one of this machine, or the port is reserved.
    """
    open_listener(host, port).close()


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        PortInUse: something else listens there.
        AddressUnusable: the host is not one of this machine, or the port is reserved.
    """
    try:
        return socket.create_server((host, port), family=_family(host, port), backlog=2048)
    except OverflowError as error:
        raise AddressUnusable(host, port, str(error)) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(host, port) from error
        raise AddressUnusable(host, port, error.strerror or str(error)) from error


def _family(host: str, port: int) -> socket.AddressFamily:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
