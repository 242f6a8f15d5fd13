"""In whose name a server runs that refuses to be root."""

import os
import pwd
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from service.embedded import keeper
from service.embedded.errors import PartFailed

SAME = "same"
NAMESPACE = "namespace"


def unprivileged_identity(data_dir: Path) -> str:
    """The identity for a server that must not be root, with the data folder made to belong to it.

    An ordinary user stays who he is. Root runs it as the owner of the data folder where that is somebody else;
    otherwise in a user namespace, where root's own files stay readable and the process is `nobody`; and where the
    kernel refuses namespaces, as the real `nobody`, to whom the folder then belongs.

    Raises:
        PartFailed: `nobody` cannot reach the data folder.
    """
    user = os.geteuid()
    if user != 0:
        return SAME if _has_name(user) or not namespaces_work() else NAMESPACE
    owner = data_dir.stat()
    if owner.st_uid != 0:
        return f"{owner.st_uid}:{owner.st_gid}"
    if namespaces_work():
        return NAMESPACE
    nobody = pwd.getpwnam("nobody")
    _require_reachable(data_dir.parent, nobody.pw_uid)
    _give(data_dir, nobody.pw_uid, nobody.pw_gid)
    return f"{nobody.pw_uid}:{nobody.pw_gid}"


@lru_cache
def namespaces_work() -> bool:
    """Whether this machine lets us make a user namespace (containers and hardened kernels often do not)."""
    reader, writer = os.pipe()
    try:
        arguments = ["--liveness", str(reader), "--death-signal", str(int(signal.SIGKILL)), "--grace", "1"]
        probe = subprocess.run(
            [sys.executable, "-I", "-S", keeper.__file__, *arguments, "--identity", NAMESPACE, "--", "true"],
            pass_fds=(reader,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    return probe.returncode == 0


def _has_name(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _require_reachable(folder: Path, user: int) -> None:
    for parent in [folder, *folder.parents]:
        status = parent.stat()
        if status.st_uid != user and not status.st_mode & 0o001:
            raise PartFailed(
                "Postgres",
                f"refuses to run as root, and the user nobody cannot enter {parent}; put the state folder where "
                f"everybody may enter (--state), or start palimpsest as an ordinary user",
            )


def _give(folder: Path, user: int, group: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, user, group, follow_symlinks=False)
