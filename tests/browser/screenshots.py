"""Screenshots in few bytes: a palette instead of three bytes for every pixel. Pages have few colours."""

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import BrowserContext

MOST_COLOURS = 64
READ_PIXELS = """async (png) => {
  const bytes = Uint8Array.from(atob(png), (sign) => sign.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], {type: "image/png"}));
  const context = new OffscreenCanvas(picture.width, picture.height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const {width, height, data} = context.getImageData(0, 0, picture.width, picture.height);
  const parts = [];
  for (let at = 0; at < data.length; at += 32768) parts.push(String.fromCharCode(...data.subarray(at, at + 32768)));
  return [width, height, btoa(parts.join(""))];
}"""


def reduced(png: bytes, *, context: BrowserContext) -> bytes:
    """Returns a picture with a palette of its most frequent colours; others become the nearest of those.

    The browser itself reads the picture, on a page of its own.
    """
    page = context.new_page()
    width, height, rgba = page.evaluate(READ_PIXELS, base64.b64encode(png).decode())
    page.close()
    pixels = np.frombuffer(base64.b64decode(rgba), dtype=np.uint8).reshape(height * width, 4).astype(np.int32)
    packed = pixels[:, 0] << 16 | pixels[:, 1] << 8 | pixels[:, 2]
    colours, which, counts = np.unique(packed, return_inverse=True, return_counts=True)
    palette = colours[np.argsort(-counts)[:MOST_COLOURS]]
    nearest = np.array([_nearest(colour, palette) for colour in colours], dtype=np.uint8)
    return _with_palette(nearest[which].reshape(height, width), _channels(palette))


def _nearest(colour: np.int32, palette: NDArray[np.int32]) -> int:
    return int(((_channels(palette) - _channels(colour)) ** 2).sum(axis=-1).argmin())


def _channels(packed: NDArray[np.int32] | np.int32) -> NDArray[np.int32]:
    """Red, green and blue, on a last axis of their own."""
    return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1)


def _with_palette(indices: NDArray[np.uint8], palette: NDArray[np.int32]) -> bytes:
    """A PNG of indices [height, width] into a palette [colours, 3]."""
    height, width = indices.shape
    lines = np.hstack([np.zeros((height, 1), dtype=np.uint8), indices])  # every line without a filter
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette.astype(np.uint8).tobytes()), _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        ]
    )  # fmt: skip


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
