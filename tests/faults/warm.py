"""Palimpsest's processes, forked from one that has imported the libraries: ready in one or two seconds instead of ten.

Each is a process like one that a shell starts: its own group, environment, output and signals, and our own modules
imported by itself. What it would start in a new interpreter (Celery, the fork server of a worker's training) it forks.
"""

import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, util
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
ROOT = Path(__file__).parents[2]
TRAINING = "workers.training.preload"
LIBRARIES = "tests.faults.warm_libraries"

_context = multiprocessing.get_context("forkserver")


def start(
    arguments: Sequence[str], *, environment: Mapping[str, str], log: Path, anew: bool = False
) -> BaseProcess:
    """Starts `palimpsest ARGUMENTS` in a group of its own, its output in a file; it dies with the tests.

    Where `anew` is set it gets a new interpreter: for a test that changes what libraries find when they are imported.
    """
    _context.set_forkserver_preload([TRAINING, LIBRARIES])
    process = _context.Process(target=_run, args=(list(arguments), dict(environment), log, anew))
    process.start()
    return process


def die_with_parent() -> None:
    """Makes this process end with the one that started it: a test run that is killed leaves none behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(arguments: list[str], environment: dict[str, str], log: Path, anew: bool) -> None:
    os.setsid()
    die_with_parent()
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # held, it would outlive the tests
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if anew:
        os.execv(sys.executable, [sys.executable, "-m", "service.cli", *arguments])
    from service.cli import main, operating

    operating._become_module = _become_module
    util.spawnv_passfds = _fork  # type: ignore[attr-defined]  # what multiprocessing starts its servers with
    sys.argv = ["palimpsest", *arguments]
    main()


def _become_module(module: str, *arguments: str) -> NoReturn:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _fork(_path: object, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """Runs `python -c CODE` in a fork, which has no descriptors but those passed on."""
    assert arguments[-2] == "-c", "not one of multiprocessing's servers"
    if pid := os.fork():
        return pid
    try:
        for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if descriptor not in {0, 1, 2, *descriptors}:
                with suppress(OSError):  # the one that listed them
                    os.close(descriptor)
        # Its last line says which signals a server leaves alone: it is run here too.
        sys.modules.pop(TRAINING, None)
        exec(arguments[-1], {})  # the code is multiprocessing's own
    except Exception:
        traceback.print_exc()
    finally:  # whatever came of it, nothing of the process that was forked may go on here
        os._exit(0)
