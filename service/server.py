"""The HTTP server of `palimpsest api`."""

import gc
import socket

import uvicorn

from service.updates.hub import get_hub


class Server(uvicorn.Server):
    """uvicorn, except that streams end when it is asked to stop.

    It tells the app only after every answer has ended, which an open stream does not do by itself.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and takes what is there by then (modules, routes, schemas) out of every later garbage collection."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the streams, then waits for the other answers as ever."""
        get_hub().close()
        await super().shutdown(sockets)
