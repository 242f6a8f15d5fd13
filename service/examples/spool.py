"""Request bodies on disk: a body of any allowed size is taken in with the same small memory."""

import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service.errors import BadRequest, BodyTooLarge, Unavailable, UnsupportedMediaType
from service.examples.bodies import JSON, NDJSON

WRITTEN_AT_ONCE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Expected:
    """Which bodies a call takes in, and what it says of others."""

    media_types: tuple[str, ...]
    wanted: str
    when_too_large: str


EXAMPLES = Expected(
    media_types=(NDJSON, JSON),
    wanted=f'Send examples as {NDJSON}, one JSON object per line, or as {JSON}: {{"examples": [ … ]}}.',
    when_too_large="Send it in several parts.",
)


@dataclass(frozen=True, slots=True)
class SpooledBody:
    """A whole request body in an unnamed file, read from its start; `digest` is its SHA-256."""

    file: BinaryIO
    media_type: str
    digest: bytes


@asynccontextmanager
async def spooled_body(
    request: Request, *, max_body_bytes: int, directory: Path | None, expected: Expected = EXAMPLES
) -> AsyncIterator[SpooledBody]:
    """Takes the request's body in; the file is gone on leaving, and with the process.

    Raises `UnsupportedMediaType` before reading, `BodyTooLarge` as soon as the limit is passed, without reading
    on, and `Unavailable` when the disk is full or forbids it.
    """
    media_type = _media_type(request, expected)
    too_large = _too_large(max_body_bytes, expected)
    _refuse_announced(request, max_body_bytes=max_body_bytes, too_large=too_large)
    try:
        file = cast(BinaryIO, tempfile.TemporaryFile(dir=directory))  # noqa: SIM115  # closed below
    except OSError as error:
        raise _unwritable(error) from error
    try:
        try:
            digest = await _receive(request, file, max_body_bytes=max_body_bytes, too_large=too_large)
        except ClientDisconnect:
            raise BadRequest("The connection ended before the body did.", code="incomplete_body") from None
        except OSError as error:
            raise _unwritable(error) from error
        yield SpooledBody(file=file, media_type=media_type, digest=digest)
    finally:
        file.close()


def _media_type(request: Request, expected: Expected) -> str:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"Content-Encoding '{encoding}' is not read here; send the body uncompressed.",
            param="Content-Encoding",
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in expected.media_types:
        raise UnsupportedMediaType(expected.wanted, param="Content-Type")
    return media_type


def _refuse_announced(request: Request, *, max_body_bytes: int, too_large: BodyTooLarge) -> None:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_body_bytes:
        raise too_large


async def _receive(
    request: Request, file: BinaryIO, *, max_body_bytes: int, too_large: BodyTooLarge
) -> bytes:
    digest, size, pending = hashlib.sha256(), 0, bytearray()
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_body_bytes:
            raise too_large
        pending += chunk
        if len(pending) >= WRITTEN_AT_ONCE:
            await run_in_threadpool(_write, file, digest, bytes(pending))
            pending.clear()
    await run_in_threadpool(_write, file, digest, bytes(pending))
    file.seek(0)
    return digest.digest()


def _write(file: BinaryIO, digest: "hashlib._Hash", data: bytes) -> None:
    digest.update(data)
    file.write(data)


def _too_large(max_body_bytes: int, expected: Expected) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is over the limit of {max_body_bytes} bytes. {expected.when_too_large}",
        headers={"Connection": "close"},
    )


def _unwritable(error: OSError) -> Unavailable:
    return Unavailable(
        f"The body could not be spooled to disk (PALIMPSEST_SPOOL_DIR): {error.strerror}. Nothing was stored; send it again "
        "once there is room.",
        code="spool_unavailable", headers={"Retry-After": "30"},
    )  # fmt: skip
