"""Child processes end when they are told to, and when their launcher is gone, with everything they started."""

import signal
import sys
import threading
from pathlib import Path

import pytest

from service.embedded.processes import ChildProcess, Command

# A service with a child in a session of its own and a grandchild, as a database or a trainer has.
FAMILY = """
import os, subprocess, sys, time
child = 'import subprocess, time; subprocess.Popen(["sleep", "300"], start_new_session=True); time.sleep(300)'
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
print("up", flush=True)
time.sleep(300)
"""
STUBBORN = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT): signal.signal(number, signal.SIG_IGN)
print("up", flush=True)
time.sleep(300)
"""
LAUNCHER = """
import sys, threading, time
from pathlib import Path
from service.embedded.processes import ChildProcess, Command
folder = Path(sys.argv[1])
(folder / "claim").touch()
command = Command("family", [sys.executable, "-c", sys.argv[2]], folder / "log", remove_on_death=[folder / "claim"])
process = ChildProcess(command)
thread = threading.Thread(target=process.start)
thread.start()
thread.join()
while "up" not in (folder / "log").read_text(): time.sleep(0.01)
time.sleep(0.3)
print(process.pid, flush=True)
time.sleep(300)
"""


def python(code: str, log: Path, **options) -> ChildProcess:
    return ChildProcess(Command("test", [sys.executable, "-c", code], log, **options))


def wait_until_up(launchers, process: ChildProcess) -> None:
    assert launchers.until(lambda: "up" in process.last_lines())


def test_the_whole_family_is_gone_when_the_launcher_is_killed(launchers, tmp_path):
    launcher = launchers.python(LAUNCHER, tmp_path, FAMILY)
    keeper = int(launcher.stdout.readline())
    family = launchers.below(launcher.pid)
    assert len(family) == 4
    assert keeper in family
    launcher.send_signal(signal.SIGKILL)
    assert launchers.gone(family)


def test_a_file_that_the_launchers_death_makes_false_is_removed(launchers, tmp_path):
    launcher = launchers.python(LAUNCHER, tmp_path, FAMILY)
    launcher.stdout.readline()
    assert (tmp_path / "claim").exists()
    launcher.send_signal(signal.SIGKILL)
    assert launchers.until(lambda: not (tmp_path / "claim").exists())


def test_a_service_that_ignores_signals_is_gone_as_well(launchers, tmp_path):
    launcher = launchers.python(LAUNCHER, tmp_path, STUBBORN)
    launcher.stdout.readline()
    family = launchers.below(launcher.pid)
    launcher.send_signal(signal.SIGKILL)
    assert launchers.gone(family)


def test_a_service_outlives_the_thread_that_started_it(launchers, tmp_path):
    process = python(FAMILY, tmp_path / "log")
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    try:
        wait_until_up(launchers, process)
        assert not process.wait(0.3)
    finally:
        process.stop()


def test_the_service_dies_with_its_keeper(launchers, tmp_path):
    process = python("print('up', flush=True); import time; time.sleep(300)", tmp_path / "log").start()
    wait_until_up(launchers, process)
    service = launchers.below(process.pid)
    assert len(service) == 1
    process._signal(signal.SIGKILL)
    assert launchers.gone(service)
    process.stop()


def test_stop_leaves_nothing_of_the_family(launchers, tmp_path):
    process = python(FAMILY, tmp_path / "log").start()
    wait_until_up(launchers, process)
    family = launchers.below(process.pid)
    assert process.stop()
    assert not process.running
    assert launchers.gone(family, seconds=0.5)


def test_stop_gives_up_waiting_for_a_stubborn_service(launchers, tmp_path):
    process = python(STUBBORN, tmp_path / "log", stop_seconds=0.3).start()
    wait_until_up(launchers, process)
    family = launchers.below(process.pid)
    assert not process.stop()
    assert launchers.gone(family, seconds=0.5)


def test_kill_needs_no_consent(launchers, tmp_path):
    process = python(STUBBORN, tmp_path / "log").start()
    wait_until_up(launchers, process)
    process.kill()
    assert process.exit_code == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 11)", 139)]
)
def test_the_exit_code_is_the_commands_own(tmp_path, code, expected):
    process = python(code, tmp_path / "log").start()
    assert process.wait(10)
    assert process.exit_code == expected


def test_a_command_that_does_not_exist_is_named_in_the_log(tmp_path):
    process = ChildProcess(Command("test", ["/no/such/program"], tmp_path / "log")).start()
    assert process.wait(10)
    assert process.exit_code != 0
    assert process.last_lines() == ["palimpsest: cannot run /no/such/program: No such file or directory"]


def test_last_lines_are_those_of_this_start_alone(tmp_path):
    process = python("print('first')", tmp_path / "log").start()
    process.wait(10)
    process = python("print('second'); print('third')", tmp_path / "log").start()
    process.wait(10)
    assert process.last_lines() == ["second", "third"]
    assert process.last_lines(1) == ["third"]


def test_a_log_past_its_limit_is_put_aside_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr("service.embedded.processes.LOG_LIMIT_BYTES", 10)
    (tmp_path / "log").write_text("a long story\n")
    process = python("print('new')", tmp_path / "log").start()
    process.wait(10)
    assert (tmp_path / "log").read_text() == "new\n"
    assert (tmp_path / "log.1").read_text() == "a long story\n"


def test_a_terminals_interrupt_does_not_reach_the_service(tmp_path):
    process = python("import os; print(os.getpgrp())", tmp_path / "log").start()
    process.wait(10)
    assert process.last_lines() == [str(process.pid)]
