"""Latency and throughput of the API under many clients, and the processor time each request takes.

`python -m bench.api [--clients 50] [--seconds N] [--json PATH]`. Starts the embedded stack without a worker, so that
updates only queue, and writes a lineage of 200 versions and 50 tasks. Every operation then runs alone: first with one
client, then with all of them in a closed loop from a process of their own. Any answer but 2xx is an error.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.client import Client
from bench.cpu import cpu_seconds_of
from bench.load import Load, Seen, measure_load
from bench.long_lineage import LABELS, Size, write_lineage
from service.embedded import Stack
from service.embedded.stack import FIRST_TENANT

MODEL = "long"
TARGET_SECONDS = 0.25  # 99 % of the matrix's answers, at 50 clients
FULL = Size(versions=200, tasks=50)
ENVIRONMENT = {
    "PALIMPSEST_RATE_LIMIT_PER_MINUTE": "0",
    "PALIMPSEST_MAX_QUEUED_UPDATES_PER_TENANT": "10000000",
}

console = Console(highlight=False)
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call to measure; several paths are taken in turn."""

    name: str
    method: str
    paths: list[str]
    body: Any = None
    once: bool = False  # every path is asked for one single time


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.api", description=__doc__)
    parser.add_argument("--clients", type=int, default=50, help="clients at once")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of every measurement")
    parser.add_argument("--versions", type=int, default=FULL.versions, help="length of the lineage")
    parser.add_argument("--tasks", type=int, default=FULL.tasks, help="tasks of the lineage")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    size = Size(versions=options.versions, tasks=options.tasks)
    figures = measure(size, clients=options.clients, seconds=options.seconds)
    show(figures, clients=options.clients)
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


def measure(size: Size, *, clients: int, seconds: float) -> Figures:
    """The figures of every operation, with one client (`NAME.alone.…`) and with all (`NAME.…`)."""
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-api-") as folder,
        Stack(Path(folder) / "state", workers=0, environment=ENVIRONMENT) as stack,
    ):
        client = Client(stack.url, stack.api_key)
        write_lineage(
            client, database_url=stack.database_url, tenant=FIRST_TENANT, model=MODEL, size=size
        )
        figures: Figures = {}
        for operation in operations(client, size):
            for at_once, prefix in ((1, f"{operation.name}.alone"), (clients, operation.name)):
                figures |= put_on(stack, operation, prefix=prefix, clients=at_once, seconds=seconds)
        return figures


def operations(client: Client, size: Size) -> list[Operation]:
    """What is measured. `matrix_of_any` asks for a lineage that nobody asked for before, each time."""
    request = {"tasks": ["task-0"], "relearn": True}
    client.stream_examples(MODEL, "task-0", [{"text": "one more row", "label": LABELS[0], "split": "train"}])
    update = client.post(f"/models/{MODEL}/updates", request)
    matrix = f"/v1/models/{MODEL}/reports/forgetting"
    return [
        Operation("get_update", "GET", [f"/v1/updates/{update['id']}"]),
        Operation("get_report", "GET", [f"/v1/models/{MODEL}/versions/{size.versions}/report"]),
        Operation("matrix", "GET", [matrix]),
        Operation("post_update", "POST", [f"/v1/models/{MODEL}/updates"], body=request),
    ]


def put_on(stack: Stack, operation: Operation, *, prefix: str, clients: int, seconds: float) -> Figures:
    """Load the API with one operation; returns what the clients saw and what the servers spent per request."""
    load = Load(
        url=stack.url, api_key=stack.api_key, method=operation.method, paths=operation.paths, body=operation.body,
        clients=clients, seconds=seconds,
    )  # fmt: skip
    servers = {"api": stack.api, "postgres": stack.postgres}
    before = {name: cpu_seconds_of(part.process.pid) for name, part in servers.items() if part and part.process.pid}
    seen = measure_load(load)
    spent = {name: cpu_seconds_of(part.process.pid) - before[name] for name, part in servers.items() if part and part.process.pid}
    return {f"{prefix}.{name}": value for name, value in figures_of(seen, spent).items()}


def figures_of(seen: Seen, spent: dict[str, float]) -> Figures:
    """The figures of one load."""
    count = len(seen.latencies)
    return {
        "p50_ms": 1000 * seen.median,
        "p99_ms": 1000 * seen.percentile(0.99),
        "requests_per_second": count / seen.seconds,
        "requests": count,
        "errors": sum(seen.errors.values()),
        **{f"{name}_cpu_ms": 1000 * seconds / count for name, seconds in spent.items()},
        "client_cpu_ms": 1000 * seen.client_cpu_seconds / count,
        "client_cores": seen.client_cpu_seconds / seen.seconds,
        "answer_bytes": seen.answer_bytes,
    }


def show(figures: Figures, *, clients: int) -> None:
    """Print one row per load."""
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
