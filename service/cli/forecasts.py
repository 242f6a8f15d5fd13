"""`palimpsest update forecast`: what an update would forget, before it is trained."""

import time
from typing import Annotated

import typer

from service.cli import updates
from service.cli.assignments import Assignments, assigned
from service.cli.calling import DEFAULT_LIMIT, Call, Json, Limit, ModelName, over_http
from service.cli.output import fixed, moment, print_facts, print_gap, print_list, print_table, remark, signed
from service.cli.problems import ExitCode
from service.cli.updates import Patience, parent_of
from service.cli.watching import FIRST_PAUSE_SECONDS, GROWTH, LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS

app = updates.app  # theirs, with four more commands
UNFINISHED = ("queued", "scoring")
ForecastId = Annotated[str, typer.Argument(metavar="FORECAST", help="Id of the forecast, `fct_…`.")]


@over_http(app, "forecast")
def forecast_update(
    call: Call,
    model: ModelName,
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK...", help="Tasks whose new rows would be learnt.")
    ],
    strategy: Annotated[
        str | None, typer.Option(help="See `palimpsest strategies list`.", show_default="replay")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(help="Version to start from.", show_default="champion")
    ] = None,
    relearn: Annotated[bool, typer.Option("--relearn", help="Take rows again that were learnt.")] = False,
    level: Annotated[
        float | None, typer.Option(help="How often intervals should hold.", show_default="0.8")
    ] = None,
    assignments: Assignments = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the forecast and show it.")] = False,
    patience: Patience = PATIENCE_SECONDS,
) -> None:
    """Forecast what an update would forget, from its first steps and the model's past. Nothing is registered.

    Example: `palimpsest update forecast triage billing --strategy replay --wait`
    """
    from service.cli.client import path

    named = {"strategy": strategy and {"name": strategy}, "parent": parent_of(parent), "level": level}
    body: Json = {"tasks": tasks, **{name: value for name, value in named.items() if value is not None}}
    body = assigned({**body, "relearn": True} if relearn else body, assignments)
    forecast = call.api.create(path("models", model, "updates:forecast"), body)
    for warning in forecast["warnings"]:
        remark(f"Note: {warning}")
    if wait:
        forecast = _made(call, forecast, patience_seconds=patience)
    _show(call, forecast)


@over_http(app, "show-forecast")
def show_forecast(
    call: Call,
    forecast: ForecastId,
) -> None:
    """Show a forecast, or how far it is."""
    _show(call, call.api.get(_of(forecast)))


@over_http(app, "cancel-forecast")
def cancel_forecast(call: Call, forecast: ForecastId) -> None:
    """Cancel an unfinished forecast, at once. Its worker stops within seconds."""
    answer = call.api.act(_of(forecast, "cancel"))
    call.show(answer, lambda _: call.say(f"{forecast} is cancelled."))


@over_http(app, "forecasts")
def list_forecasts(call: Call, model: ModelName, limit: Limit = DEFAULT_LIMIT) -> None:
    """List a model's forecasts, newest first."""
    from service.cli.client import path

    page = call.api.pages(path("models", model, "forecasts"), limit=limit)
    columns = ("forecast", "status", "tasks", "strategy", "parent", "calibrated", "requested")

    def view(page: Json) -> None:
        rows = (
            (
                one["id"], one["status"], one["tasks"], one["strategy"]["name"], one["parent_version"],
                one["forecast"] and one["forecast"]["calibrated"], moment(one["requested_at"]),
            )
            for one in page["data"]
        )  # fmt: skip
        print_list(page, columns, rows, right=("parent",))

    call.show(page, view)


def _made(call: Call, forecast: Json, *, patience_seconds: float) -> Json:
    """Reads the forecast until it is finished, and tells of its phases on standard error."""
    call.api.patience_seconds = patience_seconds
    pause, told = FIRST_PAUSE_SECONDS, ""
    try:
        while forecast["status"] in UNFINISHED:
            progress = forecast["progress"]
            now = f"{forecast['status']}: {progress['phase']}" if progress else str(forecast["status"])
            if now != told:
                told = now
                remark(now)
            time.sleep(pause)
            pause = min(pause * GROWTH, LONGEST_PAUSE_SECONDS)
            forecast = call.api.get(_of(forecast["id"]))
    except KeyboardInterrupt:
        name = forecast["id"]
        remark(
            f"The forecast {name} goes on. See it: palimpsest update show-forecast {name}\n"
            f"Cancel it: palimpsest update cancel-forecast {name}"
        )
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return forecast


def _show(call: Call, forecast: Json) -> None:
    call.show(forecast, _view)
    if forecast["status"] in ("failed", "cancelled"):
        raise typer.Exit(ExitCode.FAILED)


def _view(forecast: Json) -> None:
    error, result = forecast["error"], forecast["forecast"]
    costs = result and result["costs"]
    print_facts([
        ("forecast", forecast["id"]),
        ("update", f"{', '.join(forecast['tasks'])} from version {forecast['parent_version']} of '{forecast['model']}' by {forecast['strategy']['name']}"),
        ("status", forecast["status"]),
        ("error", error and f"{error['message']} [{error['code']}]"),
        ("probe", costs and f"{costs['probe_steps']} of {costs['total_steps']} steps, {costs['probe_seconds']:.0f} s"),
        ("the whole", costs and f"{costs['fresh_rows']} new and {costs['replay_rows']} buffered rows, about {costs['training_seconds']:.0f} s of training"),
        ("past updates", result and len(result["past"])),
        ("summary", result and result["summary"]),
    ])  # fmt: skip
    if result is None:
        return
    for skipped in result["skipped"]:
        remark(f"Note: {skipped['update']} could not be probed: {skipped['reason']}")
    print_gap()
    columns = ("task", "role", "score now", "change", "interval", "gate", "examples")
    print_table(columns, (_task(task) for task in result["tasks"]), right=("score now", "change", "examples"))


def _task(task: Json) -> tuple[object, ...]:
    bounds = task["interval"]
    return (
        task["task"], task["role"], fixed(task["parent_score"]), signed(task["predicted_change"]),
        bounds and f"{signed(bounds[0])} … {signed(bounds[1])}", task["gate"].replace("_", " "), task["eval_size"],
    )  # fmt: skip


def _of(forecast: str, *more: str) -> str:
    from service.cli.client import path

    return path("forecasts", forecast, *more)
