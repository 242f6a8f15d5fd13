"""`palimpsest update`: ask for updates, watch them, decide on them."""

from enum import StrEnum
from typing import Annotated

import typer

from service.cli.assignments import Assignments, assigned
from service.cli.calling import DEFAULT_LIMIT, Call, Json, Limit, ModelName, UpdateId, over_http
from service.cli.output import moment, print_facts, print_gap, print_list, print_table, remark
from service.cli.verdicts import decision, reasons
from service.cli.watching import PATIENCE_SECONDS, watch

app = typer.Typer(
    no_args_is_help=True,
    help="""Ask for updates, watch them, approve, reject or cancel them.

    `update submit --wait` and `update watch` end with 0 promoted, 3 rejected, 4 failed or cancelled, 5 awaiting approval,
    6 the service cannot be reached any more, 130 Ctrl-C (the update goes on); `update submit` with 7 where there is nothing new to learn.""",
)


class Promotion(StrEnum):
    """Who decides whether the new version becomes champion."""

    GATE = "gate"
    MANUAL = "manual"
    ALWAYS = "always"


class Status(StrEnum):
    """Where an update stands."""

    QUEUED = "queued"
    TRAINING = "training"
    EVALUATING = "evaluating"
    AWAITING_APPROVAL = "awaiting_approval"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"


Wait = Annotated[bool, typer.Option("--wait", help="Watch it to its end, which is the exit code.")]
Patience = Annotated[
    float, typer.Option(min=0, help="How many seconds of a lost connection are borne while watching.")
]
Reason = Annotated[str | None, typer.Option(help="Why; the history keeps it.", show_default=False)]


@over_http(app, "submit")
def submit_update(
    call: Call,
    model: ModelName,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks whose new rows are learnt.")],
    strategy: Annotated[
        str | None, typer.Option(help="See `palimpsest strategies list`.", show_default="replay")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(help="Version to start from.", show_default="champion")
    ] = None,
    promotion: Annotated[
        Promotion | None,
        typer.Option(help="The verdict, a person, or nobody decides.", show_default="gate"),
    ] = None,
    relearn: Annotated[bool, typer.Option("--relearn", help="Take rows again that were learnt.")] = False,
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Trainings in all, to measure what a seed alone changes; takes so many times as long.",
            min=1,
            max=10,
            show_default="1",
        ),
    ] = None,
    assignments: Assignments = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            help="The same key and request ask for one update only, so that a pipeline's step may run twice.",
            show_default="a new one",
        ),
    ] = None,
    wait: Wait = False,
    patience: Patience = PATIENCE_SECONDS,
) -> None:
    """Ask for an update that learns the new rows of one or more tasks.

    Example: `palimpsest update submit triage billing --strategy replay --set training.epochs=5 --wait`
    """
    from service.cli.client import path

    named = {"strategy": strategy and {"name": strategy}, "parent": parent_of(parent), "promotion": promotion}
    body: Json = {"tasks": tasks, **{name: value for name, value in named.items() if value is not None}}
    body |= {"relearn": True} if relearn else {}
    body |= {"training": {"repeats": repeats}} if repeats is not None else {}
    body = assigned(body, assignments)
    update = call.api.create(path("models", model, "updates"), body, idempotency_key=idempotency_key)
    follow(call, update, wait=wait, patience_seconds=patience)


def follow(call: Call, update: Json, *, wait: bool, patience_seconds: float) -> None:
    """Tells of an update that was just asked for: what it warns of, then its end (`wait`) or where to watch it."""
    for warning in update["warnings"]:
        remark(f"Note: {warning}")
    if wait:
        watch(call, update["id"], patience_seconds=patience_seconds)
        return
    call.show(
        update,
        lambda asked: call.say(
            f"{asked['id']} is {asked['status']}. Watch it: palimpsest update watch {asked['id']}"
        ),
    )


@over_http(app, "list")
def list_updates(
    call: Call,
    model: ModelName,
    status: Annotated[Status | None, typer.Option(help="Only these.", show_default=False)] = None,
    limit: Limit = DEFAULT_LIMIT,
) -> None:
    """List a model's updates, newest first."""
    from service.cli.client import path

    page = call.api.pages(path("models", model, "updates"), limit=limit, status=status and status.value)
    columns = ("update", "status", "tasks", "strategy", "parent", "version", "verdict", "requested")

    def view(page: Json) -> None:
        rows = (
            (
                update["id"], update["status"], update["tasks"], update["strategy"]["name"], update["parent_version"],
                update["version"], decision(update["verdict"]), moment(update["created_at"]),
            )
            for update in page["data"]
        )  # fmt: skip
        print_list(page, columns, rows, right=("parent", "version"))

    call.show(page, view)


@over_http(app, "show")
def show_update(call: Call, update: UpdateId) -> None:
    """Show an update: status, progress, verdict, error."""
    call.show(call.api.get(_of(update)), facts)


@over_http(app, "watch")
def watch_update(call: Call, update: UpdateId, patience: Patience = PATIENCE_SECONDS) -> None:
    """Watch an update to its end, which is the exit code. A lost connection is borne."""
    watch(call, update, patience_seconds=patience)


@over_http(app, "cancel")
def cancel_update(call: Call, update: UpdateId) -> None:
    """Cancel an unfinished update: at once, or at its worker's next step."""

    def view(cancelled: Json) -> None:
        asked = "will be at its next step" if cancelled["status"] != "cancelled" else "is"
        call.say(f"{update} {asked} cancelled.")

    call.show(call.api.act(_of(update, "cancel")), view)


@over_http(app, "approve")
def approve_update(call: Call, update: UpdateId, reason: Reason = None) -> None:
    """Make a candidate that awaits approval the champion."""
    answer = call.api.act(_of(update, "approve"), {"reason": reason})
    call.show(answer, lambda done: call.say(f"Version {done['version']} of '{done['model']}' is champion."))


@over_http(app, "reject")
def reject_update(call: Call, update: UpdateId, reason: Reason = None) -> None:
    """Keep a candidate that awaits approval from becoming champion."""
    answer = call.api.act(_of(update, "reject"), {"reason": reason})
    call.show(answer, lambda done: call.say(f"Version {done['version']} of '{done['model']}' is rejected."))


@over_http(app, "events")
def list_events(call: Call, update: UpdateId, limit: Limit = DEFAULT_LIMIT) -> None:
    """List every change of an update's state, oldest first."""
    page = call.api.pages(_of(update, "events"), limit=limit)

    def view(page: Json) -> None:
        rows = ((moment(event["at"]), event["type"], event["data"]) for event in page["data"])
        print_list(page, ("at", "event", "data"), rows)

    call.show(page, view)


def facts(update: Json) -> None:
    """Prints one update, with the reasons of its verdict."""
    progress, error = update["progress"], update["error"]
    print_facts([
        ("update", update["id"]),
        ("model", update["model"]),
        ("status", update["status"]),
        ("tasks", update["tasks"]),
        ("strategy", update["strategy"]["name"]),
        ("parameters", update["strategy"]["parameters"]),
        ("parent", update["parent_version"] if update["parent_version"] is not None else update["parent"]),
        ("version", update["version"]),
        ("progress", progress and _progress(progress)),
        ("attempt", f"{update['attempt']} of {update['max_attempts']}"),
        ("error", error and f"{error['message']} [{error['code']}]"),
        ("promotion", update["promotion"]),
        ("compared with", update["compared_with"]),
        ("verdict", decision(update["verdict"])),
        ("decided by", update["decided_by"]),
        ("requested", f"{moment(update['created_at'])} by {update['requested_by']}"),
        ("finished", moment(update["finished_at"])),
    ])  # fmt: skip
    for warning in update["warnings"]:
        remark(f"Note: {warning}")
    if update["verdict"]:
        print_gap()
        print_table(("gate", "task", "because"), reasons(update["verdict"]))


def _progress(progress: Json) -> str:
    which = (
        f", training {progress['repeat']} of {progress['repeats']}" if progress.get("repeats", 1) > 1 else ""
    )
    return f"{progress['phase']}{which}, step {progress['step']} of {progress['total_steps']}"


def parent_of(text: str | None) -> str | int | None:
    """The parent as the API takes it: a number, or the name of an alias."""
    return int(text) if text is not None and text.isdecimal() else text


def _of(update: str, *more: str) -> str:
    from service.cli.client import path

    return path("updates", update, *more)
