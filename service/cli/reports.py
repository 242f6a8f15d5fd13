"""`palimpsest report` and `palimpsest gate`: what updates gave and cost, and what another policy would have said."""

from enum import StrEnum
from typing import Annotated

import typer

from service.cli.calling import Call, Json, ModelName, VersionName, over_http, version_number
from service.cli.heatmap import LEARNT, heatmaps
from service.cli.noise import measured, print_noise
from service.cli.output import console, fixed, print_facts, print_gap, print_table, signed
from service.cli.verdicts import decision, judged, reasons

report = typer.Typer(no_args_is_help=True, help="What updates gave and cost, per task and over the lineage.")
gate = typer.Typer(no_args_is_help=True, help="Try gate policies.")


class OnInconclusive(StrEnum):
    """What to do when the eval sets are too small to tell."""

    HOLD = "hold"
    PROMOTE = "promote"
    REJECT = "reject"


@over_http(report, "show")
def show_report(call: Call, model: ModelName, version: VersionName = "champion") -> None:
    """Show an update's forgetting report: per task the change with its bounds and flips, and the verdict in words."""
    from service.cli.client import path

    number = version_number(call, model, version)
    call.show(call.api.get(path("models", model, "versions", number, "report")), _report)


@over_http(report, "matrix")
def show_matrix(
    call: Call,
    model: ModelName,
    version: Annotated[
        str | None, typer.Option(help="End of the lineage: a number or an alias.", show_default="champion")
    ] = None,
) -> None:
    """Show the score of every version of a lineage on every task, as a heatmap."""
    from service.cli.client import path

    number = None if version is None else version_number(call, model, version)
    answer = call.api.get(path("models", model, "reports", "forgetting"), version=number)

    def view(answer: Json) -> None:
        versions = call.api.pages(path("models", model, "versions"), limit=10_000)["data"]
        _matrix(answer, learnt={one["version"]: set(one["tasks"]) for one in versions})

    call.show(answer, view)


@over_http(gate, "simulate")
def simulate_gate(
    call: Call,
    model: ModelName,
    max_regression: Annotated[float | None, typer.Option(help="Largest loss tolerated.", show_default="as it is")] = None,
    confidence: Annotated[float | None, typer.Option(help="Between 0.5 and 1.", show_default="as it is")] = None,
    min_new_score: Annotated[float | None, typer.Option(help="Least score on new tasks.", show_default="as it is")] = None,
    on_inconclusive: Annotated[OnInconclusive | None, typer.Option(help="What follows.", show_default="as it is")] = None,
    versions: Annotated[list[int] | None, typer.Option("--version", help="May be repeated.", show_default="the newest")] = None,
    limit: Annotated[int, typer.Option(help="How many of the newest.", min=1, max=200)] = 50,
) -> None:  # fmt: skip
    """Judge past updates under another policy: what would have been promoted, held, rejected. Changes nothing.

    Example: `palimpsest gate simulate triage --max-regression 0.01`
    """
    from service.cli.client import path

    named = {
        "max_regression": max_regression, "confidence": confidence, "min_new_score": min_new_score,
        "on_inconclusive": on_inconclusive, "versions": versions or None,
    }  # fmt: skip
    body: Json = {"limit": limit, **{name: value for name, value in named.items() if value is not None}}
    call.show(call.api.ask(path("models", model, "gate:simulate"), body), _simulation)


def _report(report: Json) -> None:
    print_facts([
        ("version", f"{report['version']} of '{report['model']}', learnt from version {report['parent']}"),
        ("strategy", report["strategy"]),
        ("verdict", decision(report["verdict"])),
        ("compared with", report["compared_with"]),
        *((name.replace("_", " "), measured(name, value, report.get("noise"))) for name, value in report["summary"].items() if value is not None),
    ])  # fmt: skip
    columns = (
        "task",
        "role",
        "score",
        "before",
        "change",
        "bounds",
        "−/+ flips",
        "forgotten",
        "p",
        "examples",
    )
    print_table(columns, (_task(task) for task in report["tasks"]), right=columns[2:])
    if report.get("noise"):
        print_gap()
        print_noise(report)
    if report["verdict"]:
        print_gap()
        print_table(("gate", "task", "because"), reasons(report["verdict"]))


def _task(task: Json) -> tuple[object, ...]:
    bounds, flips = task["delta_ci"], task["flips"]
    return (
        task["task"], task["role"], fixed(task["score"]), fixed(task["parent_score"]), signed(task["delta"]),
        bounds and f"{signed(bounds[0])} … {signed(bounds[1])}",
        flips and f"−{flips['negative']} +{flips['positive']}",
        fixed(task["forgetting"]), task["p_value_holm"], task["eval_size"],
    )  # fmt: skip


def _matrix(answer: Json, *, learnt: dict[int, set[str]]) -> None:
    screen = console()
    for table in heatmaps(answer, learnt=learnt, width=screen.width):
        screen.print(table)
    screen.print(f"{LEARNT} learnt by this version; – not scored", style="dim")
    print_facts(
        (name.replace("_", " "), fixed(value))
        for name, value in answer["summary"].items()
        if value is not None
    )


def _simulation(simulated: Json) -> None:
    columns = ("version", "against", "status", "then", "now", "would", "changed")
    rows = (
        (
            one["version"], one["compared_with"], one["status"], one["decision_then"] and judged(one["decision_then"]),
            decision(one["verdict"]), one["outcome"], one["changed"],
        )
        for one in simulated["data"]
    )  # fmt: skip
    print_table(columns, rows, right=("version", "against"))
    print_gap()
    print_facts([("policy", simulated["policy"]), *simulated["summary"].items()])
