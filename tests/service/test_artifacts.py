"""The artifact store: whole or not there, whoever writes at the same time or dies on the way."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.artifacts import ArtifactDamaged, ArtifactStore, StoreUnavailable


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An empty store."""
    return ArtifactStore((tmp_path / "store").as_uri())


def test_the_same_content_stored_by_many_at_once_is_stored_once_and_whole(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    writers = 8
    together = threading.Barrier(writers)

    def put() -> str:
        together.wait()
        return store.put_folder(folder)[0]

    for content in range(4):
        (folder / "version.json").write_text(json.dumps([content] * 400_000))
        # In one process, for process ids repeat over containers: the names of their files must differ all the same.
        with ThreadPoolExecutor(writers) as pool:
            hashes = {future.result() for future in [pool.submit(put) for _ in range(writers)]}
        assert len(hashes) == 1
        store.open_verified(hashes.pop()).close()
    assert len(list((tmp_path / "store").rglob("*.*"))) == 4


def test_what_a_killed_writer_left_is_removed_once_it_is_old(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    sha256, _ = store.put_folder(folder)
    place = tmp_path / "store" / sha256[:2]
    old, new = place / f"{sha256}.tar.1.partial", place / f"{sha256}.tar.2.partial"
    for file in (old, new):
        file.touch()
    os.utime(old, (0, time.time() - 7200))
    assert store.delete_partials(older_than_seconds=3600) == 1
    assert (old.exists(), new.exists(), store.holds(sha256)) == (False, True, True)


def test_a_store_that_cannot_be_reached_is_unavailable_and_nothing_in_it_counts_as_damaged(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    sha256, _ = store.put_folder(folder)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "store").touch()
    for act in (lambda: store.open_verified(sha256), lambda: store.put_folder(folder)):
        with pytest.raises(StoreUnavailable, match="ARTIFACT_URL"):
            act()
    (tmp_path / "store").unlink()
    with pytest.raises(ArtifactDamaged, match=sha256):
        store.open_verified(sha256)


def test_a_damaged_artifact_leaves_no_folder_behind(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    sha256, _ = store.put_folder(folder)
    file = tmp_path / "store" / sha256[:2] / f"{sha256}.tar"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactDamaged, match="backup"):
        store.get_folder(sha256, tmp_path / "unpacked" / sha256)
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_an_artifact_that_a_sweeper_has_just_removed_is_stored_again_and_not_as_an_empty_file(
    store: ArtifactStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, _ = store.put_folder(folder)
    monkeypatch.setattr(ArtifactStore, "holds", lambda *_: True)  # as seen a moment before
    store.delete(sha256)
    assert store.put_folder(folder)[0] == sha256
    store.open_verified(sha256).close()
    store.delete(sha256)
    store.keep_folder(sha256, folder)
    store.open_verified(sha256).close()
