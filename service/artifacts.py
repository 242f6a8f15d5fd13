"""Artifacts: version folders as tar files under their sha256, in a folder or a bucket.

Writing: temporary file → fsync → rename to the sha256 path, and only then the caller's database commit.
Reading verifies the hash, so a flipped byte is an error and never a model.
"""

import hashlib
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from service.config import get_settings
from service.errors import ServiceError
from service.failpoints import reach

SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK = 1024 * 1024
ALLOWED_SUFFIXES = {".json", ".safetensors", ".md"}


class ArtifactDamaged(ServiceError):
    """A stored artifact is missing or does not match its hash."""

    status, code = 500, "artifact_damaged"


class ArtifactStore:
    """Content-addressed files under one fsspec URL."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._local = "file" in (
            self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        )

    def check(self) -> None:
        """Raises OSError when the store cannot be written."""
        self._fs.makedirs(self._root, exist_ok=True)
        if self._local and not os.access(self._root, os.W_OK):
            raise PermissionError(f"{self._root} is not writable")

    def put_folder(self, folder: Path) -> tuple[str, int]:
        """Stores a version folder and returns its sha256 and size in bytes. The same content is stored once.

        The tar is deterministic: sorted names, no times, no owners. Files other than JSON, Markdown and
        safetensors are refused with ValueError.
        """
        with tempfile.TemporaryFile() as spool:
            write_tar(folder, spool)
            size = spool.tell()
            return self.put_tar(spool), size

    def put_tar(self, tar: BinaryIO) -> str:
        """Stores an artifact as it is and returns its sha256. The same content is stored once."""
        tar.seek(0)
        digest = _sha256(tar)
        if self._local and self.holds(digest):
            Path(self._path(digest)).touch()  # fresh again: the sweeper of orphans passes it by
        else:
            tar.seek(0)
            self._write(digest, tar)
        return digest

    def keep_folder(self, sha256: str, folder: Path) -> None:
        """Makes a folder's artifact look new to the sweeper of orphans, or stores it again where it has gone."""
        if self._local and self.holds(sha256):
            Path(self._path(sha256)).touch()
        else:
            self.put_folder(folder)

    def holds(self, sha256: str) -> bool:
        """Says whether an artifact of that hash is stored."""
        return bool(self._fs.exists(self._path(sha256)))

    def open_verified(self, sha256: str) -> BinaryIO:
        """Returns a temporary file holding the artifact. Raises `ArtifactDamaged` when missing or altered."""
        spool = tempfile.TemporaryFile()  # noqa: SIM115  # handed to the caller
        digest = hashlib.sha256()
        try:
            with self._fs.open(self._path(sha256), "rb") as source:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    spool.write(chunk)
        except FileNotFoundError:
            spool.close()
            raise ArtifactDamaged(f"The artifact {sha256} is missing from the artifact store.") from None
        if digest.hexdigest() != sha256:
            spool.close()
            raise ArtifactDamaged(
                f"The artifact {sha256} does not match its hash (found {digest.hexdigest()}); restore it from a backup."
            )
        spool.seek(0)
        return spool

    def get_folder(self, sha256: str, target: Path) -> Path:
        """Unpacks a verified artifact into `target`, which must not exist yet, and returns it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        # Unpacked aside and renamed: a folder that is there is whole, whatever happened to an earlier attempt.
        partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
        with self.open_verified(sha256) as spool, tarfile.open(fileobj=spool, mode="r:") as tar:
            tar.extractall(partial, filter="data")
        return partial.rename(target)

    def hashes(self) -> Iterator[tuple[str, float]]:
        """Yields (sha256, age in seconds) of everything stored."""
        now = self._now()
        for entry in self._fs.find(self._root, detail=True).values():
            name = Path(entry["name"]).name.removesuffix(".tar")
            if SHA256.fullmatch(name):
                yield name, now - _written_at(entry)

    def _now(self) -> float:
        """The store's own clock: this machine's may be off by days, and would make what is new look like an orphan."""
        probe = f"{self._root}/.clock"
        self._fs.makedirs(self._root, exist_ok=True)
        self._fs.pipe_file(probe, b"")
        return _written_at(self._fs.info(probe))

    def delete(self, sha256: str) -> None:
        """Removes an artifact that nothing refers to."""
        self._fs.rm_file(self._path(sha256))

    def _path(self, sha256: str) -> str:
        if not SHA256.fullmatch(sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return f"{self._root}/{sha256[:2]}/{sha256}.tar"

    def _write(self, sha256: str, source: BinaryIO) -> None:
        final = self._path(sha256)
        self._fs.makedirs(final.rsplit("/", 1)[0], exist_ok=True)
        if not self._local:
            with self._fs.open(final, "wb") as target:  # object stores publish a whole object or nothing
                _copy(source, target)
            return
        temporary = Path(f"{final}.{os.getpid()}.partial")
        with temporary.open("wb") as target:
            _copy(source, target)
            target.flush()
            os.fsync(target.fileno())
        reach("artifact_partial")
        temporary.rename(final)
        folder = os.open(temporary.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


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


def _sha256(source: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _written_at(entry: Mapping[str, Any]) -> float:
    """When a file was written, in seconds since 1970: folders say `mtime`, buckets `LastModified`."""
    at = entry["mtime"] if "mtime" in entry else entry["LastModified"]
    return at.timestamp() if isinstance(at, datetime) else float(at)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(CHUNK):
        target.write(chunk)
