"""How the service's own processes are started from the launcher."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import service
from service.embedded.errors import PartFailed
from service.embedded.processes import ChildProcess, Command

WORKER_STOP_SECONDS = 30.0
API_STOP_SECONDS = 15.0


def api_command(*, listener: int, announced_in: Path, logs: Path, environment: Mapping[str, str]) -> Command:
    """The API on a socket that the launcher listens on, so that a restart refuses nobody.

    `announced_in` is the file that tells clients of it, which must not outlive it.
    """
    return Command(
        name="API",
        arguments=palimpsest("api", "--fd", str(listener)),
        log=logs / "api.log",
        environment=with_source(environment),
        stop_seconds=API_STOP_SECONDS,
        hand_on=[listener],
        remove_on_death=[announced_in],
    )


def worker_command(number: int, *, logs: Path, environment: Mapping[str, str]) -> Command:
    """One worker; on a stop it puts the update it works on back into the queue."""
    return Command(
        name=f"worker {number}",
        arguments=palimpsest("worker", "--name", f"worker-{number}"),
        log=logs / f"worker-{number}.log",
        environment=with_source(environment),
        stop_seconds=WORKER_STOP_SECONDS,
    )


def run_to_end(
    name: str, arguments: Sequence[str], *, logs: Path, environment: Mapping[str, str], timeout_seconds: float
) -> str:
    """Run one palimpsest command and return what it printed.

    Raises:
        PartFailed: it failed or took too long; the message holds what it wrote to standard error.
    """
    log = logs / f"{arguments[0]}.log"
    command = Command(
        name=name, arguments=palimpsest(*arguments), log=log, environment=with_source(environment)
    )
    with tempfile.TemporaryFile() as output:
        process = ChildProcess(command).start(output=output)
        try:
            finished = process.wait(timeout_seconds)
        finally:
            process.kill()
        if not finished:
            raise PartFailed(
                name, f"did not end within {timeout_seconds:.0f} s", log=log, last_lines=process.last_lines()
            )
        if process.exit_code != 0:
            raise PartFailed(
                name, f"failed (exit code {process.exit_code})", log=log, last_lines=process.last_lines()
            )
        output.seek(0)
        return output.read().decode()


def palimpsest(*arguments: str) -> list[str]:
    """The command line of a palimpsest command, run by this interpreter."""
    return [sys.executable, "-m", "service.cli", *arguments]


def with_source(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with this source folder on the path, where the service runs from a checkout uninstalled."""
    root = Path(service.__file__).parent.parent
    if root.name in ("site-packages", "dist-packages"):
        return dict(environment)
    known = environment.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return {**environment, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [known])])}
