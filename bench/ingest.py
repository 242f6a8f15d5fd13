"""Ingest over HTTP beside the same staged load without it, and replay buffers read out of many examples and of few.

`python -m bench.ingest [--rows 1000000] [--quick] [--json PATH]`. Starts the embedded stack and sends NDJSON bodies to its
API. Before or after each, in turns, the same rows go into another model of the same tables by COPY into a temporary table
and INSERT … SELECT. Then ten versions learn the rows, and their buffer, a hundredth of the rows, is read in turns with an
equal one of ten versions that learnt a fiftieth of the rows. Rates are ratios within the run: medians over bodies and over
readings.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.buffers import Lineage, mismatches
from bench.client import Client
from bench.cpu import cpu_seconds_of
from bench.loads import Target, load, make_body, prepare
from bench.memory import MemoryWatch
from service.db import engine_for, session_scope
from service.embedded import Stack
from service.registry.queries import get_model
from service.tasks.queries import get_task

QUICK_ROWS = 100_000
TENANT = "default"
TASKS = [f"task-{number:02d}" for number in range(10)]
BODIES_PER_TASK = 2
READINGS = 9
MEGABYTE = 2**20
# Whether a stratum was taught by one version, since each learnt a task of its own, or by all ten.
POLICIES = ("balanced", "reservoir")
TARGETS = {
    "http_to_copy": "≥ 0.50",
    "api_megabytes_grown": "≤ 50",
    **{f"{policy}.large_to_small": "≤ 1.50" for policy in POLICIES},
    **{f"{policy}.{size}_mismatches": "0" for policy in POLICIES for size in ("large", "small")},
}

console = Console(highlight=False)
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Cost:
    """Wall seconds, and processor seconds of all that took part but the HTTP client."""

    wall: float
    cpu: float


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="examples to ingest (default 1,000,000)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-ingest-") as folder,
        Stack(Path(folder) / "state", workers=0) as stack,
    ):
        figures = measure(stack, rows=QUICK_ROWS if options.quick else options.rows)
        engine_for(stack.database_url).dispose()
    show(figures)
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


def measure(stack: Stack, *, rows: int) -> Figures:
    """All figures, by name."""
    client = Client(stack.url, stack.api_key)
    for policy in POLICIES:
        make_model(client, f"large-{policy}", policy=policy, capacity=rows // 100)
        make_model(client, f"small-{policy}", policy=policy, capacity=rows // 100)
    figures = ingest(stack, client, rows=rows)
    for policy in POLICIES:
        fill(client, f"small-{policy}", rows=rows // 50)
        found = read_buffers(stack, policy)
        figures |= {f"{policy}.{name}": value for name, value in found.items()}
    return figures


def make_model(client: Client, name: str, *, policy: str, capacity: int) -> None:
    """A model with empty tasks."""
    replay = {"policy": policy, "capacity": capacity}
    model = {"name": name, "base_model": "minilm-l6", "task_type": "text-classification", "replay": replay}
    client.post("/models", model)
    for task in TASKS:
        client.put(f"/models/{name}/tasks/{task}")


def fill(client: Client, model: str, *, rows: int) -> None:
    """Ingest the rows, a tenth into each task."""
    each = rows // len(TASKS)
    for turn, task in enumerate(TASKS):
        client.post_ndjson(model, task, make_body(first=turn * each, rows=each))


def ingest(stack: Stack, client: Client, *, rows: int) -> Figures:
    """The same bodies over HTTP and by COPY, each way first in turns; the API's memory meanwhile."""
    bodies = len(TASKS) * BODIES_PER_TASK
    each = rows // bodies
    costs: dict[str, list[Cost]] = {"http": [], "copy": []}
    with MemoryWatch(api_process(stack)) as memory:
        for turn in range(bodies):
            task, body = TASKS[turn // BODIES_PER_TASK], make_body(first=turn * each, rows=each)
            ways = {
                "http": partial(post, client, task, body),
                "copy": partial(copy, stack, task, prepare(body), batch=turn + 1),
            }
            for way in sorted(ways, reverse=turn % 2 == 1):
                costs[way].append(cost_of(stack, ways[way], rows=each))
    return {
        "rows": each * bodies,
        "bodies": bodies,
        "megabytes_per_body": len(body) / MEGABYTE,
        **rates(costs["http"], costs["copy"], rows=each),
        "api_megabytes_at_first": memory.samples[0] / MEGABYTE,
        "api_megabytes_at_most": max(memory.samples) / MEGABYTE,
        "api_megabytes_grown": (max(memory.samples) - memory.samples[0]) / MEGABYTE,
    }


def post(client: Client, task: str, body: bytes) -> int:
    """Send a body to the API; returns how many rows it stored."""
    return int(client.post_ndjson("large-balanced", task, body)["accepted"])


def copy(stack: Stack, task: str, prepared: bytes, *, batch: int) -> int:
    """Store prepared rows without the API; returns how many."""
    with session_scope(tenant=TENANT, database_url=stack.database_url) as session:
        model = get_model(session, model="large-reservoir")
        target = Target(tenant=TENANT, model=model.id, task=get_task(session, model=model, task=task).id)
    return load(stack.database_url, target, prepared, batch=batch)


def cost_of(stack: Stack, way: Callable[[], int], *, rows: int) -> Cost:
    """What storing the rows takes. Raises RuntimeError where not all of them were stored."""
    cpu, began = cpu_of(stack), time.monotonic()
    stored = way()
    cost = Cost(wall=time.monotonic() - began, cpu=cpu_of(stack) - cpu)
    if stored != rows:
        raise RuntimeError(f"{stored} of {rows} rows were stored")
    return cost


def cpu_of(stack: Stack) -> float:
    """Processor seconds of Postgres and the API so far."""
    assert stack.postgres is not None
    server = stack.postgres.process.pid
    assert server is not None
    return cpu_seconds_of(server) + cpu_seconds_of(api_process(stack))


def api_process(stack: Stack) -> int:
    """The number of the process that keeps the API, its parent."""
    assert stack.api is not None
    assert stack.api.process.pid is not None
    return stack.api.process.pid


def rates(http: Sequence[Cost], copied: Sequence[Cost], *, rows: int) -> Figures:
    """Rows per second both ways, and the rate over HTTP as a part of the other: by the clock, and by processor time."""
    pairs = list(zip(http, copied, strict=True))
    return {
        "http_rows_per_second": rows / statistics.median(cost.wall for cost in http),
        "copy_rows_per_second": rows / statistics.median(cost.wall for cost in copied),
        "http_to_copy": statistics.median(other.wall / cost.wall for cost, other in pairs),
        "http_to_copy_lowest": min(other.wall / cost.wall for cost, other in pairs),
        "http_to_copy_in_all": sum(cost.wall for cost in copied) / sum(cost.wall for cost in http),
        "http_to_copy_by_cpu": sum(cost.cpu for cost in copied) / sum(cost.cpu for cost in http),
    }


def read_buffers(stack: Stack, policy: str) -> Figures:
    """Both sizes' buffers, read in turns and held against their definition."""
    lineages = {
        size: Lineage(stack.database_url, TENANT, f"{size}-{policy}", TASKS) for size in ("large", "small")
    }
    figures = {f"{size}_learnt": float(lineage.learn()) for size, lineage in lineages.items()}
    seconds: dict[str, list[float]] = {size: [] for size in lineages}
    with_rows: dict[str, list[float]] = {size: [] for size in lineages}
    for _ in range(READINGS):
        for size, lineage in lineages.items():
            buffer, reading, fetching = lineage.read()
            seconds[size].append(reading)
            with_rows[size].append(reading + fetching)
            figures[f"{size}_buffer"] = len(buffer.entries)
    for size, lineage in lineages.items():
        figures[f"{size}_milliseconds"] = 1000 * statistics.median(seconds[size])
        figures[f"{size}_mismatches"] = mismatches(lineage.read()[0].entries, lineage.defined())
    return figures | {
        "large_to_small": ratio(seconds),
        "large_to_small_with_rows": ratio(with_rows),
    }


def ratio(seconds: Mapping[str, Sequence[float]]) -> float:
    """The median time out of many examples, as a multiple of that out of few."""
    return statistics.median(seconds["large"]) / statistics.median(seconds["small"])


def show(figures: Figures) -> None:
    """Print the figures with their targets."""
    table = Table(title="Ingest, and replay buffers out of what was ingested", title_justify="left")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    for name, value in figures.items():
        table.add_row(
            name, f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}", TARGETS.get(name, "")
        )
    console.print(table)


if __name__ == "__main__":
    main()
