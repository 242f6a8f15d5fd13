"""How a call can fail, and the exit codes that pipelines tell the failures apart by."""

from enum import IntEnum
from typing import Any

SHOWN_ERRORS = 10


class ExitCode(IntEnum):
    """How a command ended. `palimpsest --help` lists these."""

    FINE = 0
    ERROR = 1  # the API refused, or the command cannot be carried out
    USAGE = 2  # typer's own
    REJECTED = 3
    FAILED = 4  # or cancelled
    AWAITING_APPROVAL = 5
    UNREACHABLE = 6
    NOTHING_TO_LEARN = 7  # refused, since the version to start from has learnt every row
    INTERRUPTED = 130  # as shells have it for Ctrl-C


OF_STATUS = {
    "promoted": ExitCode.FINE, "rejected": ExitCode.REJECTED, "failed": ExitCode.FAILED,
    "cancelled": ExitCode.FAILED, "awaiting_approval": ExitCode.AWAITING_APPROVAL,
}  # fmt: skip
OF_CODE = {"nothing_to_learn": ExitCode.NOTHING_TO_LEARN}


class CallFailed(Exception):
    """A command cannot be carried out; the message says why, and what to do."""

    exit_code = ExitCode.ERROR
    document: dict[str, Any] | None = None


class Unreachable(CallFailed):
    """The service does not answer, or not as Palimpsest would."""

    exit_code = ExitCode.UNREACHABLE


class Problem(CallFailed):
    """The API answered with a problem document (RFC 9457)."""

    def __init__(self, document: dict[str, Any], *, status: int) -> None:
        super().__init__(in_words(document))
        self.document, self.status, self.code = document, status, str(document.get("code", ""))
        self.exit_code = OF_CODE.get(self.code, ExitCode.ERROR)


def in_words(document: dict[str, Any]) -> str:
    """A problem document as lines of text: detail, code, where, and the first of its errors."""
    error = document.get("error") or {}
    place = error.get("param") if isinstance(error, dict) else None
    known = ", at ".join(str(part) for part in (document.get("code"), place) if part)
    detail = document.get("detail") or document.get("title") or "the request failed"
    errors = document.get("errors") or []
    lines = [f"{detail} [{known}]" if known else str(detail)]
    if len(errors) > 1 or "line" in (errors or [{}])[0]:
        lines += [f"  {_one(item)}" for item in errors[:SHOWN_ERRORS]]
    if len(errors) > SHOWN_ERRORS:
        lines.append(f"  and {len(errors) - SHOWN_ERRORS} more")
    return "\n".join(lines)


def _one(error: dict[str, Any]) -> str:
    if "line" in error:
        return f"line {error['line']}: {error['detail']} [{error['code']}]"
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
