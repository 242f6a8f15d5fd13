"""The supervisor starts again what dies, waits longer each time, and gives up on a server that cannot live."""

import sys
import time

import pytest
import redis

from service.embedded import supervisor as module
from service.embedded.errors import PartFailed
from service.embedded.processes import Command
from service.embedded.supervisor import ServicePart, Supervisor, describe_end, pause_seconds
from service.embedded.valkey import ValkeyServer

SLEEPS = "print('up', flush=True); import time; time.sleep(300)"
DIES = "print('no luck'); raise SystemExit(3)"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(said, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.02)
    running = Supervisor(say=said.append)
    yield running
    running.stop()


@pytest.fixture
def part_of(tmp_path):
    parts: list[ServicePart] = []

    def start(code: str) -> ServicePart:
        command = Command("worker 1", [sys.executable, "-c", code], tmp_path / "worker.log")
        parts.append(ServicePart(command).start())
        return parts[-1]

    yield start
    for part in parts:
        part.kill()


def test_a_killed_service_is_started_again_and_the_console_says_so(launchers, supervisor, part_of, said):
    part = part_of(SLEEPS)
    supervisor.watch(part)
    supervisor.start()
    assert launchers.until(lambda: part.process.last_lines() == ["up"])
    before = part.process.pid
    part.kill()
    assert launchers.until(lambda: part.running and part.process.pid != before)
    assert launchers.until(lambda: len(said) == 2)
    assert said == [
        "worker 1 was killed by SIGKILL; starting it again in 0.05 s (last line: up)",
        "worker 1 runs again",
    ]


def test_a_service_that_keeps_dying_is_tried_again_with_its_last_line_shown(
    launchers, supervisor, part_of, said
):
    supervisor.watch(part_of(DIES))
    supervisor.start()
    assert launchers.until(lambda: len(said) >= 3)
    assert said[0] == "worker 1 ended with exit code 3; starting it again in 0.05 s (last line: no luck)"
    assert said[2].startswith("worker 1 ended with exit code 3; starting it again in 0.1 s")
    assert supervisor.failure is None


def test_a_part_that_may_not_keep_dying_ends_the_wait_with_its_last_lines(supervisor, part_of):
    supervisor.watch(part_of(DIES), may_fail=1)
    supervisor.start()
    with pytest.raises(PartFailed, match=r"(?s)worker 1 ended with exit code 3.*no luck.*worker.log"):
        supervisor.wait(20)


def test_a_part_that_stayed_up_is_forgiven(launchers, supervisor, part_of, monkeypatch):
    monkeypatch.setattr(module, "STABLE_AFTER_SECONDS", 0.1)
    part = part_of(SLEEPS)
    supervisor.watch(part, may_fail=1)
    supervisor.start()
    for _ in range(3):
        time.sleep(0.3)
        before = part.process.pid
        part.kill()
        assert launchers.until(lambda before=before: part.running and part.process.pid != before)
    assert supervisor.failure is None


def test_nothing_is_started_after_the_stop(supervisor, part_of):
    part = part_of(SLEEPS)
    supervisor.watch(part)
    supervisor.start()
    supervisor.stop()
    part.kill()
    time.sleep(0.3)
    assert not part.running
    supervisor.wait(1)


def test_a_killed_valkey_comes_back_where_it_was_with_what_it_held(launchers, supervisor, tmp_path, said):
    with ValkeyServer(tmp_path / "valkey", logs_dir=tmp_path, password="hidden") as server:
        client = redis.Redis.from_url(server.url)
        client.set("kept", "42")
        supervisor.watch(server, may_fail=5)
        supervisor.start()
        server.kill()
        assert launchers.until(lambda: "Valkey runs again" in said)
        assert client.get("kept") == b"42"
        supervisor.stop()


def test_pauses_grow_to_half_a_minute_and_no_further():
    assert [pause_seconds(deaths) for deaths in (1, 2, 3, 7, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0]


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (0, "ended with exit code 0"),
        (137, "was killed by SIGKILL"),
        (-15, "was killed by SIGTERM"),
        (None, "is gone"),
    ],
)
def test_the_end_of_a_process_is_told_in_words(exit_code, words):
    assert describe_end(exit_code) == words
