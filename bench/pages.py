"""Server time of the pages for people, over a lineage of 100 versions and 40 tasks.

`python -m bench.pages [--json PATH]`. Starts the embedded stack without a worker, writes the lineage, signs in, and asks for
every page again and again, one request after the other. `first_ms` is the first answer of all, when no report is kept yet;
`p50_ms` and `p99_ms` are from sending the request to having the whole answer, on this machine, `api_cpu_ms` what the API's
processor spent on each. The newest version rehearsed and has a dial: that its page draws both is checked at the end.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from bench.api import ENVIRONMENT, servers_cpu_seconds
from bench.client import Client
from bench.long_lineage import Size, write_lineage
from service.dials.schemas import DEFAULT_BETAS
from service.embedded import Stack
from service.embedded.stack import FIRST_TENANT

MODEL = "long"
TARGET_SECONDS = 1.0  # within which the model's page is to be rendered
FULL = Size(versions=100, tasks=40)
COLUMNS = {
    "first ms": "first_ms", "p50 ms": "p50_ms", "p99 ms": "p99_ms", "API CPU ms": "api_cpu_ms", "bytes": "answer_bytes",
}  # fmt: skip

console = Console(highlight=False, width=100)
Figures = dict[str, Any]


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="how often every page is asked for")
    parser.add_argument("--versions", type=int, default=FULL.versions, help="length of the lineage")
    parser.add_argument("--tasks", type=int, default=FULL.tasks, help="tasks of the lineage")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    pages = measure(Size(versions=options.versions, tasks=options.tasks), repeats=options.repeats)
    show(pages)
    if options.json:
        figures = {
            f"{name}.{figure}": value for name, page in pages.items() for figure, value in page.items()
        }
        options.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


def measure(size: Size, *, repeats: int) -> dict[str, Figures]:
    """The figures of every page."""
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-pages-") as folder,
        Stack(Path(folder) / "state", workers=0, environment=ENVIRONMENT) as stack,
    ):
        client = Client(stack.url, stack.api_key)
        write_lineage(client, database_url=stack.database_url, tenant=FIRST_TENANT, model=MODEL, size=size)
        update = client.get(f"/models/{MODEL}/updates", limit=1)["data"][0]["id"]
        with httpx.Client(
            base_url=stack.url, headers={"Origin": stack.url, "Accept": "text/html"}, timeout=60
        ) as browser:
            sign_in(browser, api_key=stack.api_key)
            pages = pages_of(size, update=f"/ui/updates/{update}")
            timed = {name: time_page(browser, stack, path, repeats=repeats) for name, path in pages.items()}
            # Last: the page must not be read before it is timed.
            require_drawn(browser.get(pages["version"]).text, size=size)
            return timed


def pages_of(size: Size, *, update: str) -> dict[str, str]:
    """The pages to measure by name; the model's own comes first, when no report is kept yet."""
    model = f"/ui/models/{MODEL}"
    newest = f"{model}/versions/{size.versions}"
    return {
        "model": model, "models": "/ui/models", "version": newest, "rollback": f"{model}/rollback", "update": update,
        "matrix_svg": f"{model}/matrix.svg", "changes_svg": f"{newest}/changes.svg", "matrix_csv": f"{model}/matrix.csv",
        "dial_svg": f"{newest}/dial.svg", "rehearsed_csv": f"{newest}/rehearsed.csv",
    }  # fmt: skip


def require_drawn(html: str, *, size: Size) -> None:
    """Raise `RuntimeError` unless a version's page draws its dial, every point of it, and shows every task that was rehearsed."""
    dial, rehearsal = section(html, "dial"), section(html, "rehearsed")
    rehearsed = min(size.tasks, size.versions - 1)
    missing = {
        "the dial's curves": 'aria-label="Scores over β"' not in dial or "<svg" not in dial,
        "the dial's points": dial.count("<tr") != 1 + len(DEFAULT_BETAS),
        "the tasks rehearsed": any(f" task-{task} " not in rehearsal for task in range(rehearsed)),
        "rows that were rehearsed": "removed since" in rehearsal,
    }
    if any(missing.values()):
        raise RuntimeError(
            f"the page of the newest version lacks {[what for what in missing if missing[what]]}"
        )


def section(html: str, name: str) -> str:
    """What stands in the page's section of that name; nothing where there is none."""
    _, _, rest = html.partition(f'<section aria-labelledby="{name}">')
    return rest.partition("</section>")[0]


def sign_in(browser: httpx.Client, *, api_key: str) -> None:
    """Sign in as a browser does; the cookie is kept."""
    answer = browser.post("/ui/signin", data={"key": api_key})
    if answer.status_code != httpx.codes.SEE_OTHER:
        raise RuntimeError(f"signing in was answered with {answer.status_code}")


def time_page(browser: httpx.Client, stack: Stack, path: str, *, repeats: int) -> Figures:
    """Ask for one page over and over."""
    before = servers_cpu_seconds(stack)["api"]
    milliseconds, size = [], 0
    for _ in range(repeats):
        began = time.perf_counter()
        answer = browser.get(path)
        milliseconds.append(1000 * (time.perf_counter() - began))
        answer.raise_for_status()
        size = len(answer.content)
    spent = servers_cpu_seconds(stack)["api"] - before
    return {
        "first_ms": milliseconds[0],
        "p50_ms": statistics.median(milliseconds),
        "p99_ms": sorted(milliseconds)[math.ceil(0.99 * repeats) - 1],
        "api_cpu_ms": 1000 * spent / repeats,
        "answer_bytes": size,
    }


def show(pages: dict[str, Figures]) -> None:
    """Print one row per page, and whether the model's is fast enough."""
    table = Table(title="Server time of the pages", title_justify="left")
    table.add_column("page")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, page in pages.items():
        cells = (page[figure] for figure in COLUMNS.values())
        table.add_row(name, *(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells))
    console.print(table)
    slowest = max(pages["model"]["first_ms"], pages["model"]["p99_ms"])
    console.print(
        f"The model's page took {slowest:.0f} ms at most; it is to take {1000 * TARGET_SECONDS:.0f} ms."
    )


if __name__ == "__main__":
    main()
