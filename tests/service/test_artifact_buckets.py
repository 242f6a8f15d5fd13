"""The artifact store in a bucket: seen as it is, whole or not there, and unavailable when it is away."""

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.artifacts import BUCKET_OPTIONS, ArtifactDamaged, ArtifactStore, StoreUnavailable
from tests.buckets import Bucket, bucket

PART_BYTES = 50 * 2**20  # larger objects are uploaded in parts


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket that this process's settings reach."""
    with bucket() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        ArtifactStore(made.url)._fs.clear_instance_cache()  # clients of an earlier test's server
        yield made


@pytest.fixture
def store(s3: Bucket) -> ArtifactStore:
    """The store in it."""
    return ArtifactStore(s3.url)


def test_what_is_stored_comes_back_and_is_found_by_its_hash(
    store: ArtifactStore, s3: Bucket, folder: Path, tmp_path: Path
) -> None:
    store.check()
    sha256, size = store.put_folder(folder)
    assert store.put_folder(folder) == (sha256, size)
    assert s3.keys() == [f"artifacts/{sha256[:2]}/{sha256}.tar"]
    assert [name for name, _ in store.hashes()] == [sha256]
    unpacked = store.get_folder(sha256, tmp_path / "unpacked")
    assert (unpacked / "version.json").read_bytes() == (folder / "version.json").read_bytes()
    store.delete(sha256)
    store.delete(sha256)
    assert (store.holds(sha256), s3.keys()) == (False, [])


def test_an_altered_or_missing_object_is_damaged(store: ArtifactStore, s3: Bucket, folder: Path) -> None:
    sha256, _ = store.put_folder(folder)
    [key] = s3.keys()
    content = s3.read(key)
    for altered in (content[:-1], b"x" + content[1:]):
        s3.write(key, altered)
        with pytest.raises(ArtifactDamaged, match="does not match its hash"):
            store.open_verified(sha256)
    s3.client.delete_object(Bucket="palimpsest", Key=key)
    with pytest.raises(ArtifactDamaged, match="is missing"):
        store.open_verified(sha256)


def test_what_another_process_stores_or_removes_is_seen_at_once(
    store: ArtifactStore, s3: Bucket, folder: Path
) -> None:
    sha256, _ = store.put_folder(folder)
    [key] = s3.keys()
    content = s3.read(key)
    time.sleep(2.1)  # a bucket tells whole seconds
    assert store.age_seconds(sha256) >= 2
    assert [age >= 2 for _, age in store.hashes()] == [True]
    s3.write(key, content)  # about to be referred to: a sweeper that still took it for old would delete it
    assert store.age_seconds(sha256) < 2
    assert [age < 2 for _, age in store.hashes()] == [True]
    s3.client.delete_object(Bucket="palimpsest", Key=key)
    assert (store.holds(sha256), list(store.hashes()), store.age_seconds(sha256)) == (False, [], 0.0)


def test_a_bucket_that_is_away_is_unavailable_and_damages_nothing(
    store: ArtifactStore, s3: Bucket, folder: Path
) -> None:
    sha256, _ = store.put_folder(folder)
    s3.stop()
    for act in (lambda: store.open_verified(sha256), lambda: store.put_folder(folder)):
        with pytest.raises(StoreUnavailable, match="ARTIFACT_URL"):
            act()
    for act in (store.check, lambda: list(store.hashes()), lambda: store.delete(sha256)):
        with pytest.raises(OSError, match="connect"):
            act()
    s3.start()
    store.check()
    store.open_verified(sha256).close()


def test_a_bucket_that_takes_calls_and_never_answers_is_unavailable_before_long(
    monkeypatch: pytest.MonkeyPatch, s3: Bucket, folder: Path
) -> None:
    monkeypatch.setitem(
        BUCKET_OPTIONS, "config_kwargs", {**BUCKET_OPTIONS["config_kwargs"], "read_timeout": 0.3}
    )
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        store = ArtifactStore(s3.url)
        began = time.monotonic()
        for act in (lambda: store.open_verified("0" * 64), lambda: store.put_folder(folder)):
            with pytest.raises(StoreUnavailable, match="ARTIFACT_URL"):
                act()
        with pytest.raises(OSError, match=r"[Tt]imeout"):
            store.check()
        assert time.monotonic() - began < 60  # a minute at most with time-outs fifty times as long


def test_a_bucket_that_nobody_made_is_not_made_by_a_mistaken_name(s3: Bucket, folder: Path) -> None:
    mistaken = ArtifactStore(s3.url.replace("palimpsest", "palimspest"))
    with pytest.raises(FileNotFoundError):
        mistaken.check()
    sha256 = "0" * 64
    for act in (
        lambda: mistaken.put_folder(folder),
        lambda: mistaken.open_verified(sha256),  # not damaged: with its right name the version may be there
        lambda: mistaken.holds(sha256),
    ):
        with pytest.raises(StoreUnavailable):
            act()
    assert [entry["Name"] for entry in s3.client.list_buckets()["Buckets"]] == ["palimpsest"]


class BreaksOff(io.BytesIO):
    """A file that cannot be read to its end."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads until the second part has begun."""
        if self.tell() > PART_BYTES + 2**20:
            raise OSError(5, "Input/output error")
        return super().read(size)


def test_an_upload_that_breaks_off_publishes_nothing_and_leaves_no_parts(
    store: ArtifactStore, s3: Bucket
) -> None:
    with pytest.raises(OSError, match="Input/output"):
        store._write("0" * 64, BreaksOff(bytes(PART_BYTES + 2**22)))
    assert s3.keys() == []
    assert s3.unfinished_uploads() == 0
