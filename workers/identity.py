"""The name a worker leaves on the updates it holds."""

import os
import socket


def worker_name() -> str:
    """Returns `host:pid` of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"
