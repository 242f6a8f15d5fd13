"""How training and evaluation end when they do not end well. All of these cross a pipe, so all pickle."""

import errno
import os
import re
import signal as signals
from collections.abc import Mapping
from typing import Any

DISK_ERRORS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO,
    }
)  # fmt: skip
NUMBER_IN_RUST = re.compile(r"\(os error (\d+)\)")  # safetensors raises no OSError, but ends its message so

DIVERGED = frozenset(
    {"non_finite_loss", "non_finite_gradient", "non_finite_parameters", "non_finite_features"}
)
"""How a training ends that ran away; with another seed it may not."""


class Cancelled(Exception):
    """The supervisor asked the child to give up, and it did."""


class Stopped(Exception):
    """The supervisor asked the child to leave; a checkpoint has been written and the next attempt goes on from it."""


class TrainingFailed(Exception):
    """Training or evaluation cannot go on. `code` is stable, `message` is for people, `detail` is plain data."""

    def __init__(self, code: str, message: str, detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(code, message, dict(detail or {}))
        self.code = code
        self.message = message
        self.detail = dict(detail or {})

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ChildDied(Exception):
    """The child process ended without an answer: `exit_code` as multiprocessing tells it, `signal` by name."""

    def __init__(self, exit_code: int | None, signal: str | None = None) -> None:
        if signal is None and exit_code is not None and exit_code < 0:
            signal = signals.Signals(-exit_code).name
        super().__init__(exit_code, signal)
        self.exit_code = exit_code
        self.signal = signal

    def __str__(self) -> str:
        if self.signal == "SIGKILL":
            return "the training process was killed by SIGKILL, probably out of memory"
        if self.signal is not None:
            return f"the training process was killed by {self.signal}"
        return f"the training process ended without an answer (exit code {self.exit_code})"


def reason_of(error: Exception) -> str:
    """Returns why a file cannot be read, without its path: whoever reads the message may be no operator."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


def quoted(value: object) -> str:
    """Returns what a stranger's file says, as a message may quote it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def unwritable_work_folder(error: BaseException) -> TrainingFailed | None:
    """Returns the failure that a full or unwritable disk is, `work_folder_unwritable`; None for any other error."""
    if isinstance(error, OSError):
        number = error.errno
    else:
        found = NUMBER_IN_RUST.search(str(error))
        number = int(found[1]) if found else None
    if number is None or number not in DISK_ERRORS:
        return None
    return TrainingFailed(
        "work_folder_unwritable",
        f"the worker's work folder could not be written: {os.strerror(number)}; make room there and give the worker access, "
        "or let PALIMPSEST_WORK_DIR name another folder, and then request the update again",
        {"errno": number},
    )
