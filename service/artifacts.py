"""Artifacts: version folders as tar files under their sha256, in a folder or a bucket.

Writing: temporary file → fsync → rename to the sha256 path, and only then the caller's database commit.
Reading verifies the hash, so a flipped byte is an error and never a model.
"""

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import fsspec
from structlog import get_logger

from service.config import get_settings
from service.errors import ServiceError, Unavailable
from service.failpoints import reach
from service.signs_of_life import show_life

log = get_logger(__name__)
SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK = 1024 * 1024
ALLOWED_SUFFIXES = {".json", ".safetensors", ".md"}
# Listings are never kept: what another process has stored or removed since would be missed, and swept. A bucket that is
# away, or silent, is tried for a minute at most; what is to wait longer, such as an update, tries again by itself.
BUCKET_OPTIONS = {
    "use_listings_cache": False,
    "config_kwargs": {
        "connect_timeout": 5, "read_timeout": 15, "retries": {"mode": "standard", "total_max_attempts": 3},
    },
}  # fmt: skip


class ArtifactDamaged(ServiceError):
    """A stored artifact is missing or does not match its hash."""

    status, code = 500, "artifact_damaged"


class StoreUnavailable(Unavailable):
    """The store cannot be read or written now: a full disk, a missing mount, no permission."""

    code = "artifact_store_unavailable"


class ArtifactStore:
    """Content-addressed files under one fsspec URL."""

    def __init__(self, url: str) -> None:
        bucket = url.startswith("s3://")
        options = {**BUCKET_OPTIONS, "session": _session_of_buckets()} if bucket else {}
        self._fs, self._root = fsspec.core.url_to_fs(url, **options)
        self._bucket = self._root.split("/", 1)[0] if bucket else None
        self._local = "file" in (
            self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        )
        self._failures = _failures_of_buckets() if bucket else ()
        if bucket:
            self._fs.retries = 1  # s3fs's own, over those of the options

    def check(self) -> None:
        """Raises OSError when the store is not there, or is a folder that cannot be written."""
        with self._reached():
            self._make_folder(self._root)
            self._require_bucket()
            if self._local and not os.access(self._root, os.W_OK):
                raise PermissionError(f"{self._root} is not writable")

    def put_folder(self, folder: Path) -> tuple[str, int]:
        """Stores a version folder and returns its sha256 and size in bytes. The same content is stored once.

        The tar is deterministic: sorted names, no times, no owners. Files other than JSON, Markdown and
        safetensors are refused with ValueError. Raises `StoreUnavailable` when it cannot be written.
        """
        with self._access("written"), tempfile.TemporaryFile() as spool:
            write_tar(folder, spool)
            size = spool.tell()
            return self.put_tar(spool), size

    def put_tar(self, tar: BinaryIO, *, instead: bool = False) -> str:
        """Stores an artifact as it is and returns its sha256. The same content is stored once, or `instead` of a damaged one."""
        with self._access("written"):
            tar.seek(0)
            digest = _sha256(tar)
            if instead or not self._freshen(digest):
                tar.seek(0)
                self._write(digest, tar)
        return digest

    def _freshen(self, sha256: str) -> bool:
        """Makes a stored file look new, so that the sweeper of orphans passes it by; False where there is none."""
        if not self._local:
            return False
        try:
            os.utime(self._path(sha256))
        except FileNotFoundError:
            return False
        return True

    def keep_folder(self, sha256: str, folder: Path) -> None:
        """Makes a folder's artifact look new to the sweeper of orphans, or stores it again where it has gone."""
        with self._access("written"):
            if not self._freshen(sha256):
                self.put_folder(folder)

    def holds(self, sha256: str) -> bool:
        """Says whether an artifact of that hash is stored. Raises `StoreUnavailable` when that cannot be asked."""
        with self._access("read"), self._reached():
            if self._fs.exists(self._path(sha256)):
                return True
            self._require_bucket()
            return False

    def open_verified(self, sha256: str) -> BinaryIO:
        """Returns a temporary file holding the artifact.

        Raises `ArtifactDamaged` when missing or altered, and `StoreUnavailable` when it cannot be read.
        """
        remedy = "restore it from a backup, or go on from another version"
        with self._access("read"):
            spool = tempfile.TemporaryFile()  # noqa: SIM115  # handed to the caller
            try:
                found = self._fetch(sha256, spool)
                if found != sha256:
                    raise ArtifactDamaged(
                        f"The artifact {sha256} does not match its hash (found {found}); {remedy}."
                    )
                spool.seek(0)
            except BaseException as error:
                spool.close()
                if isinstance(error, FileNotFoundError):
                    self._require_bucket()
                    raise ArtifactDamaged(
                        f"The artifact {sha256} is missing from the artifact store; {remedy}."
                    ) from None
                raise
        return spool

    def _fetch(self, sha256: str, target: BinaryIO) -> str:
        """Copies an artifact and returns the hash of what was found."""
        digest = hashlib.sha256()
        with self._reached(), self._fs.open(self._path(sha256), "rb") as source:
            for chunk in _chunks(source):
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest()

    @contextmanager
    def _access(self, act: str) -> Iterator[None]:
        # The paths go to the log alone: whoever asked for an update or a download may be no operator.
        try:
            yield
        except OSError as error:
            log.error(
                "artifact_store_failed", store=self._root, spool=tempfile.gettempdir(), error=str(error)
            )
            raise StoreUnavailable(
                f"The artifact store (ARTIFACT_URL) could not be {act}: {error.strerror or type(error).__name__}. Make room "
                "there and in the temporary folder, and give this process access to both; then try again.",
                headers={"Retry-After": "30"},
            ) from error

    def get_folder(self, sha256: str, target: Path) -> Path:
        """Unpacks a verified artifact into `target`, which must not exist yet, and returns it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        # Unpacked aside and renamed: a folder that is there is whole, whatever happened to an earlier attempt.
        partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
        try:
            with self.open_verified(sha256) as spool, tarfile.open(fileobj=spool, mode="r:") as tar:
                tar.extractall(partial, filter="data")
            return partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def hashes(self) -> Iterator[tuple[str, float]]:
        """Yields (sha256, age in seconds) of everything stored."""
        with self._reached():
            now = self._now()
            found = self._fs.find(self._root, detail=True)
        for entry in found.values():
            name = Path(entry["name"]).name.removesuffix(".tar")
            if SHA256.fullmatch(name):
                yield name, now - _written_at(entry)

    def _now(self) -> float:
        """The store's own clock: this machine's may be off by days, and would make what is new look like an orphan."""
        probe = f"{self._root}/.clock"
        self._make_folder(self._root)
        self._fs.pipe_file(probe, b"")
        return _written_at(self._fs.info(probe))

    def age_seconds(self, sha256: str) -> float:
        """Returns how long ago an artifact was stored or used again, by the store's own clock; 0 where it has gone."""
        try:
            with self._reached():
                return self._now() - _written_at(self._fs.info(self._path(sha256)))
        except FileNotFoundError:
            return 0.0

    def delete(self, sha256: str) -> None:
        """Removes an artifact that nothing refers to; another sweeper may have been faster."""
        with suppress(FileNotFoundError), self._reached():
            self._fs.rm_file(self._path(sha256))

    def delete_partials(self, *, older_than_seconds: float) -> int:
        """Removes what killed writers left beside its place; returns how many. A living writer's grows younger."""
        if not self._local:
            return 0
        deleted, now = 0, self._now()
        for path in Path(self._root).glob("??/*.partial"):
            with suppress(FileNotFoundError):  # its writer has just finished, or another sweeper was faster
                if now - path.stat().st_mtime > older_than_seconds:
                    path.unlink()
                    deleted += 1
        return deleted

    def _path(self, sha256: str) -> str:
        if not SHA256.fullmatch(sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return f"{self._root}/{sha256[:2]}/{sha256}.tar"

    def _write(self, sha256: str, source: BinaryIO) -> None:
        final = self._path(sha256)
        if not self._local:
            self._publish(final, source)
            return
        self._make_folder(final.rsplit("/", 1)[0])
        # A name of its own: process ids repeat over containers that share a volume.
        temporary = Path(f"{final}.{uuid4().hex}.partial")
        try:
            with temporary.open("wb") as target:
                _copy(source, target)
                target.flush()
                os.fsync(target.fileno())
            reach("artifact_partial")
            temporary.rename(final)
        except BaseException:
            temporary.unlink(missing_ok=True)  # a full disk needs its room back
            raise
        folder = os.open(temporary.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def _publish(self, path: str, source: BinaryIO) -> None:
        """Writes a whole object or nothing: what was sent before a failure is given up, where closing would publish it."""
        with self._reached():
            self._make_folder(path.rsplit("/", 1)[0])
            target = self._fs.open(path, "wb")
            try:
                _copy(source, target)
                target.close()
            except BaseException:
                target.closed = True  # it closes itself when it is collected
                target.discard()
                raise

    def _make_folder(self, path: str) -> None:
        # A bucket has no folders; to make "them" would make the bucket, whose name may be a mistake.
        if not self._bucket:
            self._fs.makedirs(path, exist_ok=True)

    def _require_bucket(self) -> None:
        """Raises OSError where the bucket itself is not there: nothing in it counts as lost then."""
        if self._bucket:
            with self._reached():
                self._fs.info(self._bucket)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Passes on what goes wrong with a bucket as the OSError that a folder would raise."""
        try:
            yield
        except self._failures as error:
            raise ConnectionError(str(error)) from error


@lru_cache
def get_store() -> ArtifactStore:
    """Returns the store that the settings name."""
    return ArtifactStore(get_settings().artifact_url)


def write_tar(folder: Path, target: BinaryIO) -> None:
    """Writes `folder` as a deterministic tar: sorted names, no times, no owners."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.suffix not in ALLOWED_SUFFIXES:
                raise ValueError(f"a version holds JSON and safetensors only, not {path.name}")
            entry = tarfile.TarInfo(str(path.relative_to(folder)))
            entry.size = path.stat().st_size
            entry.mode = 0o644
            with path.open("rb") as source:
                tar.addfile(entry, source)


def _failures_of_buckets() -> tuple[type[Exception], ...]:
    """What s3fs raises beside OSError: no connection, no credentials, answers that break off or that it does not know."""
    errors = import_module("botocore.exceptions")
    return errors.BotoCoreError, errors.ClientError, *import_module("s3fs.core").S3_RETRYABLE_ERRORS


def _session_of_buckets() -> Any:
    """What s3fs makes its clients from, without `Expect: 100-continue`, whose answer aiohttp awaits beyond every time-out."""
    fsspec.get_filesystem_class("s3")  # says what to install where it is missing
    session = import_module("aiobotocore.session").AioSession()
    session.unregister("before-call.s3", import_module("botocore.handlers").add_expect_header)
    return session


def _sha256(source: BinaryIO) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(source):
        digest.update(chunk)
    return digest.hexdigest()


def _written_at(entry: Mapping[str, Any]) -> float:
    """When a file was written, in seconds since 1970: folders say `mtime`, buckets `LastModified`."""
    at = entry["mtime"] if "mtime" in entry else entry["LastModified"]
    return at.timestamp() if isinstance(at, datetime) else float(at)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    for chunk in _chunks(source):
        target.write(chunk)


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        show_life()
        yield chunk
