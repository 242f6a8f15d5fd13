"""Folders that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workers.training.errors import TrainingFailed, reason_of, unwritable_work_folder


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` by one rename once everything in it is on disk.

    A `target` left by an earlier attempt is replaced. When the body raises, nothing is left behind.

    Raises:
        TrainingFailed: `work_folder_unwritable`, where the disk is full or forbids it.
    """
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in sorted(temporary.rglob("*")):
            sync(path)
        sync(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        sync(target.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if (failure := unwritable_work_folder(error)) is not None:
            raise failure from error
        raise


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys.

    Raises:
        ValueError: for NaN and infinities, which are not JSON; nothing is written.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, *, code: str) -> Any:
    """Read a JSON file.

    Raises:
        TrainingFailed: with `code`, when the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingFailed(
            code, f"{path.name} cannot be read: {reason_of(error)}", {"file": path.name}
        ) from error
