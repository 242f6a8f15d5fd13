"""A closed loop of HTTP clients in a process of its own: each sends its next request once the last is answered.

`measure_load` starts `python -m bench.load`, which reads a `Load` as JSON and prints what it saw as JSON.
"""

import asyncio
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import aiohttp

TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """One operation under load: `clients` at once take `paths` in turn for `seconds`, or until `requests` are sent."""

    url: str
    api_key: str
    method: str
    paths: list[str]
    clients: int
    seconds: float
    body: Any = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the clients saw: seconds of every request, errors by kind, and the processor seconds they took themselves."""

    seconds: float
    client_cpu_seconds: float
    latencies: list[float]
    errors: dict[str, int]
    answer_bytes: int

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the requests was answered (nearest rank)."""
        ranked = sorted(self.latencies)
        return ranked[math.ceil(share * len(ranked)) - 1]


def measure_load(load: Load) -> Seen:
    """Put the load on from a process of its own.

    Raises:
        RuntimeError: that process failed; the message holds what it wrote to standard error.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(load)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if finished.returncode != 0:
        raise RuntimeError(f"the load generator failed: {finished.stderr[-2000:]}")
    return Seen(**json.loads(finished.stdout))


def main() -> None:
    """Read a load from standard input, run it, print what was seen."""
    seen = asyncio.run(run(Load(**json.load(sys.stdin))))
    json.dump(asdict(seen), sys.stdout)


async def run(load: Load) -> Seen:
    """Open the connections, then let every client loop at once. What is not answered 2xx is an error."""
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    sizes: list[int] = []
    left = iter(range(load.requests)) if load.requests is not None else None
    paths = cycle(load.paths)
    async with aiohttp.ClientSession(
        load.url, headers={"Authorization": f"Bearer {load.api_key}"}, auto_decompress=False,
        connector=aiohttp.TCPConnector(limit=load.clients), timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS),
    ) as client:  # fmt: skip
        await asyncio.gather(*(_ask(client, "GET", "/livez") for _ in range(load.clients)))
        began, cpu_began = time.perf_counter(), time.process_time()
        deadline = began + load.seconds

        async def loop() -> None:
            while time.perf_counter() < deadline and (left is None or next(left, None) is not None):
                sent = time.perf_counter()
                try:
                    status, content = await _ask(client, load.method, next(paths), body=load.body)
                except (aiohttp.ClientError, TimeoutError) as error:
                    errors[type(error).__name__] += 1
                else:
                    sizes.append(len(content))
                    if not 200 <= status < 300:
                        errors[f"{status} {content.decode(errors='replace')[:200]}"] += 1
                latencies.append(time.perf_counter() - sent)

        await asyncio.gather(*(loop() for _ in range(load.clients)))
        ended, cpu_ended = time.perf_counter(), time.process_time()
    return Seen(
        seconds=ended - began,
        client_cpu_seconds=cpu_ended - cpu_began,
        latencies=latencies,
        errors=dict(errors),
        answer_bytes=int(statistics.median(sizes)) if sizes else 0,
    )


async def _ask(client: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    async with client.request(method, path, json=body) as answer:
        return answer.status, await answer.read()


if __name__ == "__main__":
    main()
