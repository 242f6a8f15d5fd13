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
TARGET_SECONDS = 0.25  # within which 99 of 100 matrices are to be answered under all clients
FULL = Size(versions=200, tasks=50)
FIRST_READS = 10
ENVIRONMENT = {
    "PALIMPSEST_RATE_LIMIT_PER_MINUTE": "0",
    "PALIMPSEST_MAX_QUEUED_UPDATES_PER_TENANT": "10000000",
}
COLUMNS = {
    "p50 ms": "p50_ms", "p99 ms": "p99_ms", "requests/s": "requests_per_second", "errors": "errors",
    "API CPU ms": "api_cpu_ms", "Postgres CPU ms": "postgres_cpu_ms", "client CPU ms": "client_cpu_ms",
    "client cores": "client_cores", "bytes": "answer_bytes",
}  # fmt: skip

console = Console(highlight=False, width=140)  # the table is as wide in a file as on a screen
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call to measure. Several `paths` are taken in turn; `once` asks for each a single time, from one client."""

    name: str
    method: str
    paths: list[str]
    body: Any = None
    once: bool = False


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
    loads = measure(size, clients=options.clients, seconds=options.seconds)
    show(loads, clients=options.clients)
    if options.json:
        figures = {
            f"{name}.{figure}": value for name, load in loads.items() for figure, value in load.items()
        }
        options.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


def measure(size: Size, *, clients: int, seconds: float) -> dict[str, Figures]:
    """The figures of every load: each operation with one client (`NAME.alone`) and with all (`NAME`)."""
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-api-") as folder,
        Stack(Path(folder) / "state", workers=0, environment=ENVIRONMENT) as stack,
    ):
        client = Client(stack.url, stack.api_key)
        write_lineage(client, database_url=stack.database_url, tenant=FIRST_TENANT, model=MODEL, size=size)
        loads = {}
        for operation in operations(client, size):
            loads[f"{operation.name}.alone"] = put_on(stack, operation, clients=1, seconds=seconds)
            if not operation.once:
                loads[operation.name] = put_on(stack, operation, clients=clients, seconds=seconds)
        return loads


def operations(client: Client, size: Size) -> list[Operation]:
    """What is measured. `matrix_first_read` asks for lineages that nobody has asked for before."""
    client.stream_examples(MODEL, "task-0", [{"text": "one more row", "label": LABELS[0], "split": "train"}])
    request = {"tasks": ["task-0"]}
    update = client.post(f"/models/{MODEL}/updates", request)
    matrix = f"/v1/models/{MODEL}/reports/forgetting"
    before_last = range(max(1, size.versions - FIRST_READS), size.versions)
    return [
        Operation("get_update", "GET", [f"/v1/updates/{update['id']}"]),
        Operation("get_report", "GET", [f"/v1/models/{MODEL}/versions/{size.versions}/report"]),
        Operation("matrix", "GET", [matrix]),
        Operation(
            "matrix_first_read", "GET", [f"{matrix}?version={number}" for number in before_last], once=True
        ),
        Operation("post_update", "POST", [f"/v1/models/{MODEL}/updates"], body=request),
    ]


def put_on(stack: Stack, operation: Operation, *, clients: int, seconds: float) -> Figures:
    """Load the API with one operation; returns what the clients saw and what the servers spent on each request."""
    load = Load(
        url=stack.url, api_key=stack.api_key, method=operation.method, paths=operation.paths, body=operation.body,
        clients=clients, seconds=seconds, requests=len(operation.paths) if operation.once else None,
    )  # fmt: skip
    before = servers_cpu_seconds(stack)
    seen = measure_load(load)
    after = servers_cpu_seconds(stack)
    return figures_of(seen, {name: after[name] - before[name] for name in after})


def servers_cpu_seconds(stack: Stack) -> dict[str, float]:
    """Processor seconds that the API and Postgres have taken so far."""
    parts = {"api": stack.api, "postgres": stack.postgres}
    return {
        name: cpu_seconds_of(part.process.pid)
        for name, part in parts.items()
        if part is not None and part.process.pid is not None
    }


def figures_of(seen: Seen, spent: dict[str, float]) -> Figures:
    """The figures of one load."""
    count = len(seen.latencies)
    return {
        "p50_ms": 1000 * seen.percentile(0.50),
        "p99_ms": 1000 * seen.percentile(0.99),
        "requests_per_second": count / seen.seconds,
        "requests": count,
        "errors": sum(seen.errors.values()),
        "first_errors": list(seen.errors)[:3],
        **{f"{name}_cpu_ms": 1000 * seconds / count for name, seconds in spent.items()},
        "client_cpu_ms": 1000 * seen.client_cpu_seconds / count,
        "client_cores": seen.client_cpu_seconds / seen.seconds,
        "answer_bytes": seen.answer_bytes,
    }


def show(loads: dict[str, Figures], *, clients: int) -> None:
    """Print one row per load, what went wrong, and whether the matrix is fast enough."""
    table = Table(title=f"With {clients} clients at once, and with one ('alone')", title_justify="left")
    table.add_column("operation")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, load in loads.items():
        cells = (load.get(figure, float("nan")) for figure in COLUMNS.values())
        table.add_row(name, *(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells))
    console.print(table)
    for name, load in loads.items():
        for error in load["first_errors"]:
            console.print(f"{name}: {error}")
    p99 = loads["matrix"]["p99_ms"]
    console.print(
        f"99 % of matrices within {p99:.0f} ms; they are to be within {1000 * TARGET_SECONDS:.0f} ms."
    )
    console.print(
        "CPU is per request. 'client cores' near 1 means that the load generator was the bottleneck."
    )


if __name__ == "__main__":
    main()
