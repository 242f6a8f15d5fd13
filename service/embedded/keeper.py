"""Runs one command, and leaves nothing of it behind when the launcher dies. Started as a script.

The launcher puts a keeper between itself and every process it starts:

    python -I -S keeper.py --liveness FD --death-signal N --grace SECONDS --identity WHO -- COMMAND…

- The keeper holds the read end of a pipe whose only write end is the launcher's. When the launcher is gone, however
  it died and whichever of its threads started us, the pipe closes and the keeper ends the command.
- The keeper is a child subreaper: processes that the command leaves behind become the keeper's children, and it kills
  them, generation after generation, until none is left. Only then does it end itself.
- Should the keeper be killed, the command gets the death signal from the kernel (PR_SET_PDEATHSIG). That one follows
  the creating *thread*, which is why the keeper has only one.

Only the standard library is imported, nothing of `service`: a keeper starts in about 40 ms and stays small.
"""

import argparse
import ctypes
import errno
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWUSER = 0x10000000
NAMESPACE_ID = 65534  # "nobody", in whose name servers run that refuse to be root

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
KILL_NOW = signal.SIGUSR1
HANDLED = (*FORWARDED, KILL_NOW, signal.SIGHUP, signal.SIGCHLD)

CANNOT_RUN = 126
CANNOT_BECOME = 125

_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command to its end, or until the launcher is gone, and return its exit code (128 + n for a signal)."""
    options = _parse(argv)
    for descriptor in [options.liveness, *options.hold]:
        os.set_inheritable(descriptor, False)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    child = os.fork()
    if child == 0:
        _become(options)
    code = Keeper(child, options).run()
    kill_descendants()
    return code


class Keeper:
    """Waits for the command and the launcher at once."""

    def __init__(self, child: int, options: argparse.Namespace) -> None:
        self.child = child
        self.liveness: int = options.liveness
        self.death_signal: int = options.death_signal
        self.grace_seconds: float = options.grace
        self.remove: list[str] = options.remove
        self.exit_code: int | None = None
        self.kill_now = False
        self.wake, wake_writer = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def run(self) -> int:
        """Return the command's exit code; 137 where it had to be killed."""
        while not self._finished():
            if self._launcher_is_gone():
                self._remove_files()
                self._end_command()
                break
        return 128 + signal.SIGKILL if self.exit_code is None else self.exit_code

    def _finished(self) -> bool:
        self._reap()
        return self.exit_code is not None or self.kill_now

    def _launcher_is_gone(self) -> bool:
        ready, _, _ = select.select([self.liveness, self.wake], [], [])
        self._drain()
        return self.liveness in ready and not os.read(self.liveness, 64)

    def _remove_files(self) -> None:
        for path in self.remove:
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108  # nothing is imported here that can be done without

    def _end_command(self) -> None:
        deadline = time.monotonic() + self.grace_seconds
        self._signal_child(self.death_signal)
        while not self._finished() and time.monotonic() < deadline:
            select.select([self.wake], [], [], max(0.0, deadline - time.monotonic()))
            self._drain()

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == KILL_NOW:
            self.kill_now = True
        elif number in FORWARDED:
            self._signal_child(number)

    def _signal_child(self, number: int) -> None:
        # A reaped child's number may already belong to a stranger.
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self.child, number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                code = os.waitstatus_to_exitcode(status)
                self.exit_code = code if code >= 0 else 128 - code

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self.wake, 512):
                pass


def kill_descendants() -> None:
    """Kill every process below this one; orphans come to us as their parents die, so each round goes one deeper."""
    while True:
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    own = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent_of(name) == own]  # noqa: PTH208


def _parent_of(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123
            # The name in parentheses may itself hold spaces and parentheses.
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _become(options: argparse.Namespace) -> None:
    """Turn this fresh child into the command. Never returns."""
    keeper = os.getppid()
    try:
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        _take_identity(options.identity)
        # After the change of identity, which clears it.
        _prctl(PR_SET_PDEATHSIG, options.death_signal)
        if os.getppid() != keeper:
            os._exit(CANNOT_RUN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    except OSError as error:
        _say(f"cannot run as {options.identity!r}: {error}")
        os._exit(CANNOT_BECOME)
    try:
        os.execvp(options.command[0], options.command)  # noqa: S606
    except OSError as error:
        _say(f"cannot run {options.command[0]}: {error.strerror}")
    os._exit(CANNOT_RUN)


def _take_identity(identity: str) -> None:
    if identity == "namespace":
        _enter_user_namespace()
    elif identity != "same":
        user, group = (int(part) for part in identity.split(":"))
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)


def _enter_user_namespace() -> None:
    """Keep the outer user's files, but be `nobody` to whoever asks for our number."""
    user, group = os.geteuid(), os.getegid()
    if _libc.unshare(CLONE_NEWUSER) != 0:
        raise _os_error("unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{NAMESPACE_ID} {user} 1")
    _write("/proc/self/gid_map", f"{NAMESPACE_ID} {group} 1")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise _os_error("prctl")


def _os_error(call: str) -> OSError:
    number = ctypes.get_errno() or errno.EPERM
    return OSError(number, f"{call}: {os.strerror(number)}")


def _say(message: str) -> None:
    os.write(2, f"palimpsest: {message}\n".encode())


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="keeper")
    parser.add_argument("--liveness", type=int, required=True)
    parser.add_argument("--death-signal", type=int, required=True)
    parser.add_argument("--grace", type=float, required=True)
    parser.add_argument("--identity", default="same", help="same, namespace, or UID:GID")
    parser.add_argument(
        "--hold", type=int, action="append", default=[], help="kept open here, not in the command"
    )
    parser.add_argument(
        "--remove", action="append", default=[], help="a file to remove when the launcher is gone"
    )
    parser.add_argument("command", nargs="+")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
