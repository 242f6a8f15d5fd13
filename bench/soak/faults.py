"""The faults: real signals to real processes of the embedded stack, one after another, drawn by a seed."""

import math
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

import psutil
import redis

from service.embedded import Stack
from service.embedded.supervisor import STABLE_AFTER_SECONDS, Part, ServicePart

LEASE_SECONDS = 6.0
SWEEP_SECONDS = 1.0
FROZEN_SECONDS = LEASE_SECONDS + 3 * SWEEP_SECONDS
# The supervisor gives a server up that keeps dying, and forgives it its deaths once it has stayed up for a while.
SERVER_REST_SECONDS = STABLE_AFTER_SECONDS + 5
RETRY_SECONDS = 0.5


class Chaos(threading.Thread):
    """Strikes `per_minute` times in a minute until told to stop; of the faults that are possible, one of the rarest so far."""

    def __init__(self, stack: Stack, *, per_minute: float, seed: str) -> None:
        super().__init__(name="chaos", daemon=True)
        self.struck: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
        self.last = "none"
        self.error: Exception | None = None
        self._stack, self._pause = stack, 60.0 / per_minute if per_minute > 0 else math.inf
        self._random = random.Random(f"{seed} faults")
        self._killed_at: dict[str, float] = {}
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Lets a fault end that is under way, and begins no other."""
        self._stopping.set()
        self.join()

    def run(self) -> None:
        """Strikes on time; a fault that takes long is followed by the next at once. An error ends it and is kept."""
        try:
            self._strike_on_time()
        except Exception as error:  # whatever it is, a soak without faults would prove nothing
            self.error = error

    def _strike_on_time(self) -> None:
        if self._pause == math.inf:
            return
        due = time.monotonic() + self._pause
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = due + self._pause if self._strike() else time.monotonic() + RETRY_SECONDS

    def _strike(self) -> bool:
        for fault in sorted(FAULTS, key=lambda fault: (self.struck[fault], self._random.random())):
            if not self._is_rested(fault):
                continue
            with suppress(psutil.NoSuchProcess, redis.RedisError):  # it was gone before we came
                if FAULTS[fault](self._stack, self._random):
                    self._note(fault)
                    return True
        return False

    def _is_rested(self, fault: str) -> bool:
        killed_at = self._killed_at.get(SERVERS.get(fault, ""))
        return killed_at is None or time.monotonic() - killed_at > SERVER_REST_SECONDS

    def _note(self, fault: str) -> None:
        self.struck[fault] += 1
        self.last = fault
        if fault in SERVERS:
            self._killed_at[SERVERS[fault]] = time.monotonic()


def kill_worker(stack: Stack, rng: random.Random) -> bool:
    """`kill -9` of a worker, one that trains if there is any."""
    return _signal(_busy_worker(stack, rng), signal.SIGKILL)


def terminate_worker(stack: Stack, rng: random.Random) -> bool:
    """SIGTERM to a worker, as a deployment sends it."""
    return _signal(_busy_worker(stack, rng), signal.SIGTERM)


def freeze_worker(stack: Stack, rng: random.Random) -> bool:
    """SIGSTOP of a worker for longer than its lease, then SIGCONT: it wakes up as a stale holder."""
    worker = _busy_worker(stack, rng)
    if not _signal(worker, signal.SIGSTOP) or worker is None:
        return False
    try:
        time.sleep(FROZEN_SECONDS)
    finally:
        worker.send_signal(signal.SIGCONT)
    return True


def kill_training_child(stack: Stack, rng: random.Random) -> bool:
    """`kill -9` of a process that trains."""
    children = [child for worker in _workers(stack) for child in _training_children(worker)]
    return _signal(rng.choice(children) if children else None, signal.SIGKILL)


def kill_api(stack: Stack, _rng: random.Random) -> bool:
    """`kill -9` of the API."""
    return _signal(_process(stack.api), signal.SIGKILL)


def kill_valkey(stack: Stack, _rng: random.Random) -> bool:
    """`kill -9` of Valkey."""
    return _signal(_process(stack.valkey), signal.SIGKILL)


def flush_valkey(stack: Stack, _rng: random.Random) -> bool:
    """FLUSHALL: every hint is gone."""
    with redis.Redis.from_url(stack.redis_url, socket_timeout=2, socket_connect_timeout=2) as client:
        return bool(client.flushall())


def kill_postgres(stack: Stack, _rng: random.Random) -> bool:
    """`kill -9` of Postgres with all its sessions."""
    return _signal(_process(stack.postgres), signal.SIGKILL)


def stop_postgres_at_once(stack: Stack, _rng: random.Random) -> bool:
    """Postgres's immediate shutdown: no checkpoint, the next start recovers."""
    return _signal(_process(stack.postgres), signal.SIGQUIT)


FAULTS: Mapping[str, Callable[[Stack, random.Random], bool]] = {
    "kill -9 worker": kill_worker,
    "kill -9 training child": kill_training_child,
    "SIGSTOP worker past its lease": freeze_worker,
    "SIGTERM worker": terminate_worker,
    "kill -9 API": kill_api,
    "kill -9 Valkey": kill_valkey,
    "FLUSHALL": flush_valkey,
    "kill -9 Postgres": kill_postgres,
    "immediate shutdown of Postgres": stop_postgres_at_once,
}
"""By name; each tells whether it struck: what it would break may not be there."""
SERVERS = {
    "kill -9 Valkey": "Valkey",
    "kill -9 Postgres": "Postgres",
    "immediate shutdown of Postgres": "Postgres",
}


def _signal(process: psutil.Process | None, number: signal.Signals) -> bool:
    if process is None:
        return False
    process.send_signal(number)
    return True


def _process(part: Part | ServicePart | None) -> psutil.Process | None:
    """The process that does a part's work, which is the child of its keeper."""
    if part is None or not part.running or part.process.pid is None:
        return None
    return next(iter(psutil.Process(part.process.pid).children()), None)


def _workers(stack: Stack) -> list[psutil.Process]:
    found = (_process(part) for part in stack.workers)
    return [process for process in found if process is not None]


def _busy_worker(stack: Stack, rng: random.Random) -> psutil.Process | None:
    workers = _workers(stack)
    busy = [worker for worker in workers if _training_children(worker)]
    return rng.choice(busy or workers) if workers else None


def _training_children(worker: psutil.Process) -> list[psutil.Process]:
    """The children of a worker's fork server, which are the ones that train."""
    with suppress(psutil.NoSuchProcess):
        return [child for server in worker.children() for child in server.children()]
    return []
