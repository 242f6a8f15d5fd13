"""Pictures as PNG, for documents that take no SVG.

Each is drawn by a process of its own: the library keeps the interpreter to itself while it draws, which takes seconds for
thousands of cells, and no other request is to wait for that. Whoever waits here holds neither thread nor connection.
"""

import asyncio
import re
import sys
from functools import lru_cache
from math import sqrt
from pathlib import Path
from subprocess import CalledProcessError

import structlog
from anyio import CapacityLimiter, fail_after, run_process
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import Unavailable, Unprocessable

PROGRAM = Path(__file__).with_name("rasterise.py")
SHARPNESS = 2.0  # pixels of the PNG for one of the picture, along each side
MOST_PIXELS = 8_000_000  # larger pictures are drawn less sharply
MOST_BYTES = 3_000_000  # of SVG
AT_ONCE = 2
MOST_WAITING = 8
PATIENCE_SECONDS = 60.0  # for a turn and the picture together
log = structlog.get_logger(__name__)
SIZE = re.compile(r'<svg[^>]* width="([\d.]+)" height="([\d.]+)"')


class PngResponse(Response):
    """A picture that is drawn as PNG when it is sent: the request's session is closed by then."""

    media_type = "image/png"

    def __init__(self, picture: str) -> None:
        super().__init__()
        self._picture = picture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Draws the picture and sends it. Raises as `png` does."""
        drawn = await png(self._picture)
        await Response(drawn, media_type=self.media_type)(scope, receive, send)


async def png(picture: str) -> bytes:
    """Returns an SVG picture as PNG on white paper.

    Raises `Unprocessable` for one that is too large, and `Unavailable` where too many wait, it takes too long, or fails.
    """
    given = picture.encode()
    if len(given) > MOST_BYTES:
        raise Unprocessable(
            f"The picture has {len(given)} bytes as SVG; up to {MOST_BYTES} are drawn as PNG. Take the SVG.",
            code="picture_too_large",
        )
    places = _places(asyncio.get_running_loop())
    if places.statistics().tasks_waiting >= MOST_WAITING:
        raise _too_busy("Too many pictures wait to be drawn.")
    command = [sys.executable, "-P", str(PROGRAM), f"{_sharpness(picture):.4f}"]
    try:
        with fail_after(PATIENCE_SECONDS):
            async with places:
                drawn = await run_process(command, input=given, stderr=None)
    except TimeoutError:
        raise _too_busy("The picture could not be drawn in time.") from None
    except (
        CalledProcessError,
        OSError,
        ExceptionGroup,
    ) as error:  # a group where it ended while it was read to
        status = error.returncode if isinstance(error, CalledProcessError) else None
        log.warning("picture_not_drawn", error=repr(error), status=status, bytes=len(given))
        raise _too_busy("The picture could not be drawn.") from None
    return drawn.stdout


def _too_busy(what: str) -> Unavailable:
    return Unavailable(
        f"{what} Ask again in a moment, or for the SVG.", code="too_busy", headers={"Retry-After": "10"}
    )


@lru_cache
def _places(_loop: asyncio.AbstractEventLoop) -> CapacityLimiter:
    return CapacityLimiter(AT_ONCE)


def _sharpness(picture: str) -> float:
    size = SIZE.match(picture)
    if size is None:
        raise ValueError("the picture does not begin with its size")
    return min(SHARPNESS, sqrt(MOST_PIXELS / (float(size[1]) * float(size[2]))))
