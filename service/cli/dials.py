"""`palimpsest version dial` and `version blend`: what lies between a version and its parent."""

import time
from typing import Annotated

import typer

from service.cli import versions
from service.cli.calling import Call, Json, ModelName, VersionName, over_http, version_number
from service.cli.output import fixed, print_facts, print_gap, print_table, remark
from service.cli.problems import CallFailed, ExitCode, Problem
from service.cli.updates import Patience, Promotion, Wait, follow
from service.cli.verdicts import judged
from service.cli.watching import FIRST_PAUSE_SECONDS, GROWTH, LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS

app = versions.app  # theirs, with two more commands
UNFINISHED = ("queued", "scoring")


@over_http(app, "dial")
def show_dial(
    call: Call,
    model: ModelName,
    version: VersionName = "champion",
    betas: Annotated[
        list[float] | None,
        typer.Option("--beta", min=0, max=1, help="A point to score besides those there; may be repeated.", show_default="0, 0.1 … 1 at first"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every point is scored.")] = True,
    patience: Patience = PATIENCE_SECONDS,
) -> None:  # fmt: skip
    """Show how the points between a version's parent (β 0) and the version (β 1) score. Scores them first where they are not.

    Example: `palimpsest version dial triage 7`
    """
    where = _of(model, version_number(call, model, version), "dial")
    dial = _asked_for(call, where, betas)
    if wait:
        dial = _scored(call, where, dial, patience_seconds=patience)
    call.show(dial, _view)
    if dial["status"] == "failed":
        raise typer.Exit(ExitCode.FAILED)


@over_http(app, "blend")
def blend_version(
    call: Call,
    model: ModelName,
    version: VersionName,
    beta: Annotated[
        float,
        typer.Option("--beta", help="Weight of the version, between 0 and 1; the rest is its parent's."),
    ],
    promotion: Annotated[
        Promotion | None,
        typer.Option(help="The verdict, a person, or nobody decides.", show_default="gate"),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="The same key and request ask for one blend only.", show_default="a new one"),
    ] = None,
    wait: Wait = False,
    patience: Patience = PATIENCE_SECONDS,
) -> None:
    """Register the point β of the way from a version's parent to it as a version of its own, through the gate.

    Example: `palimpsest version blend triage 7 --beta 0.6 --wait`
    """
    body: Json = {"beta": beta, **({"promotion": promotion.value} if promotion else {})}
    where = _of(model, version_number(call, model, version), "blend")
    update = call.api.create(where, body, idempotency_key=idempotency_key)
    follow(call, update, wait=wait, patience_seconds=patience)


def _asked_for(call: Call, where: str, betas: list[float] | None) -> Json:
    if betas:
        return call.api.create(where, {"betas": betas})
    try:
        return call.api.get(where)
    except Problem as problem:
        if problem.code != "dial_not_found":
            raise
    return call.api.create(where, {})


def _scored(call: Call, where: str, dial: Json, *, patience_seconds: float) -> Json:
    """Reads the dial until it is finished, and tells of every point on standard error."""
    call.api.patience_seconds = patience_seconds
    pause, known = FIRST_PAUSE_SECONDS, -1
    try:
        while dial["status"] in UNFINISHED:
            if len(dial["points"]) != known:
                known = len(dial["points"])
                remark(f"{dial['status']}: {known} of {len(dial['betas'])} points")
            time.sleep(pause)
            pause = min(pause * GROWTH, LONGEST_PAUSE_SECONDS)
            dial = call.api.get(where)
    except KeyboardInterrupt:
        remark("The scoring goes on; the same command shows what is there.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if dial["status"] == "failed" and dial["error"] is None:
        raise CallFailed("The dial failed.")
    return dial


def _view(dial: Json) -> None:
    error = dial["error"]
    print_facts([
        ("dial", f"between version {dial['parent']} (β 0) and version {dial['version']} (β 1) of '{dial['model']}'"),
        ("status", dial["status"]),
        ("error", error and f"{error['message']} [{error['code']}]"),
        ("recommended β", dial["recommended_beta"]),
        ("bounds", f"each at {dial['gate']['confidence']:.0%} confidence"),
    ])  # fmt: skip
    print_gap()
    columns = ("β", "average", "stability", "worst retention", "plasticity", "neg. flips", "old tasks")
    print_table(columns, (_point(point) for point in dial["points"]), right=columns[:-1])
    print_gap()
    columns = ("task", "role", "β", "score", "bounds", "−/+ flips", "examples")
    rows = (_task(point, at) for at in range(_tasks(dial)) for point in dial["points"])
    print_table(columns, rows, right=columns[2:])


def _point(point: Json) -> tuple[object, ...]:
    return (
        point["beta"], fixed(point["average_accuracy"]), fixed(point["stability"]), fixed(point["worst_retention"]),
        fixed(point["plasticity"]), fixed(point["negative_flip_rate"]), point["old_tasks"] and judged(point["old_tasks"]),
    )  # fmt: skip


def _task(point: Json, at: int) -> tuple[object, ...]:
    task = point["tasks"][at]
    bounds, flips = task["interval"], task["flips"]
    return (
        task["task"], task["role"], point["beta"], fixed(task["score"]),
        bounds and f"{fixed(bounds[0])} … {fixed(bounds[1])}",
        flips and f"−{flips['negative']} +{flips['positive']}", task["eval_size"],
    )  # fmt: skip


def _tasks(dial: Json) -> int:
    return len(dial["points"][0]["tasks"]) if dial["points"] else 0


def _of(model: str, *more: str | int) -> str:
    from service.cli.client import path

    return path("models", model, "versions", *more)
