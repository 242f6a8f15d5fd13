"""Ports kept and sockets that listen, on this machine."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from service.embedded.errors import AddressUnusable, PortInUse

LOOPBACK = "127.0.0.1"


def hold_port(host: str = LOOPBACK, port: int = 0) -> socket.socket:
    """Keep a port for a server that starts later, or again; 0 takes a free one. Closing the socket gives it up.

    The socket is bound and never listens. The system then gives the port to nobody who takes whatever is free, and lets
    only those listen there who name it and allow it to be shared (SO_REUSEADDR, which every server sets).

    Raises:
        PortInUse: something listens there.
        AddressUnusable: the host is not one of this machine, or the port is reserved.
    """
    with _told(host, port):
        held = socket.socket(_family(host, port))
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((host, port))
        except BaseException:
            held.close()
            raise
        return held


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        PortInUse: something else listens there.
        AddressUnusable: the host is not one of this machine, or the port is reserved.
    """
    with _told(host, port):
        return socket.create_server((host, port), family=_family(host, port), backlog=2048)


@contextmanager
def _told(host: str, port: int) -> Iterator[None]:
    """Says what the system holds against an address."""
    try:
        yield
    except OverflowError as error:
        raise AddressUnusable(host, port, str(error)) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(host, port) from error
        raise AddressUnusable(host, port, error.strerror or str(error)) from error


def _family(host: str, port: int) -> socket.AddressFamily:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
