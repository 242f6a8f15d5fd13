"""The scratch folder of an attempt: its own, so that a holder that lost its lease without knowing can disturb nobody.

    work_dir / update id / fence / …

An attempt takes over the checkpoints of the one before it, where that ran on this machine, and removes the rest.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from service.config import get_settings
from service.updates.leases import Claim

CHECKPOINTS = (
    "checkpoints-of-{parent}"  # of an attempt that starts from that version; a further seed's name goes on
)
HANDED_ON = ("step-?????????", "trials.json")


def work_root() -> Path:
    """The folder of all scratch folders."""
    return get_settings().work_dir or Path(tempfile.gettempdir()) / "palimpsest-work"


def workspace_of(claim: Claim) -> Path:
    """The folder of this attempt."""
    return work_root() / claim.update_id / str(claim.fence)


def open_workspace(claim: Claim) -> Path:
    """Makes the folder of this attempt, with the newest checkpoints of those before it in it, and returns it.

    Their folders are removed; those of later attempts are not: this one's holder may have lost the lease unawares.
    Raises OSError when the folder cannot be made.
    """
    work = workspace_of(claim)
    earlier = [folder for folder in _attempts(work.parent) if int(folder.name) < claim.fence]
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in next(filter(None, map(_handed_on, reversed(earlier))), []):
        _take_over(left, work / left.parent.name / left.name)
    for folder in earlier:
        shutil.rmtree(folder, ignore_errors=True)
    return work


def leave_workspace(work: Path, *, keep: bool) -> None:
    """Removes this attempt's folder and those before it, unless another attempt may want the checkpoints.

    A later attempt's stays: whoever leaves may have lost the lease without knowing.
    """
    if keep:
        return
    remove_attempts(work.parent, up_to=int(work.name))
    with suppress(OSError):  # a later attempt is at work there
        work.parent.rmdir()


def remove_attempts(update: Path, *, up_to: int) -> int:
    """Removes the folders of an update's attempts on this machine up to that fence; returns how many."""
    doomed = [folder for folder in _attempts(update) if int(folder.name) <= up_to]
    for folder in doomed:
        shutil.rmtree(folder, ignore_errors=True)
    return len(doomed)


def _attempts(update: Path) -> list[Path]:
    """The folders of an update's attempts on this machine, oldest first."""
    folders = (folder for folder in update.glob("*") if folder.name.isdecimal())
    return sorted(folders, key=lambda folder: int(folder.name))


def _handed_on(attempt: Path) -> list[Path]:
    """What an attempt leaves to the next one: checkpoints, and the trials that a search has finished."""
    folders = attempt.glob(CHECKPOINTS.format(parent="*"))
    return [left for folder in folders for pattern in HANDED_ON for left in folder.glob(pattern)]


def _take_over(left: Path, target: Path) -> None:
    try:
        if left.is_dir():
            shutil.copytree(left, target, copy_function=_link)
        else:
            target.parent.mkdir(exist_ok=True)
            _link(str(left), str(target))
    except OSError:  # its holder, not dead after all, has just replaced it by a later one
        shutil.rmtree(target, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)  # checkpoints are never written to twice
    except OSError:
        shutil.copy2(source, target)
