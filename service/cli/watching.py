"""Watching an update to its end, through lost connections."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from service.cli.calling import Call, Json
from service.cli.output import messages, plain, remark, shortened
from service.cli.problems import OF_STATUS, ExitCode, Unreachable

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_SECONDS = 600.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, GROWTH = 0.2, 2.0, 1.2


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an update is, as a progress bar shows it; `total` is None where nobody knows how much there is."""

    phase: str
    step: int = 0
    total: int | None = None
    note: str = ""


def standing(update: Json) -> Standing:
    """Reads phase, steps, loss and remaining time from an update."""
    now, status = update["progress"], update["status"].replace("_", " ")
    if update["status"] in OF_STATUS:
        return Standing(status, step=1, total=1)
    if not now:
        return Standing(status)
    notes = [f"loss {now['loss']:.4g}"] if now["loss"] is not None else []
    if now["eta_seconds"] is not None:
        minutes, seconds = divmod(round(now["eta_seconds"]), 60)
        notes.append(f"{minutes}:{seconds:02d} left")
    if now.get("repeats", 1) > 1:
        notes.append(f"training {now['repeat']} of {now['repeats']}")
    if update["attempt"] > 1:
        notes.append(f"attempt {update['attempt']}")
    return Standing(now["phase"], now["step"], now["total_steps"] or None, ", ".join(notes))


def watch(call: Call, update_id: str, *, patience_seconds: float) -> None:
    """Shows an update's progress until it ends or a person has to decide; raises `typer.Exit` with the code for that.

    A service that does not answer for `patience_seconds` raises `Unreachable`. Ctrl-C leaves the update alone.
    """
    again = f"Watch it again: palimpsest update watch {update_id}"
    try:
        with _display(update_id) as display:
            update = _follow(call, update_id, display, patience_seconds=patience_seconds)
    except KeyboardInterrupt:
        remark(f"The update {update_id} goes on. {again}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except Unreachable as lost:
        raise Unreachable(f"{lost}\nThe update {update_id} goes on without us. {again}") from None
    call.show(update, lambda ended: typer.echo(_ending(ended)))
    raise typer.Exit(OF_STATUS[update["status"]])


def _follow(
    call: Call, update_id: str, show: Callable[[Standing], None], *, patience_seconds: float
) -> Json:  # fmt: skip
    from service.cli.client import path

    call.api.patience_seconds = patience_seconds
    call.api.notice = lambda reason: show(
        Standing("connection lost", note=f"trying again; {shortened(reason, 30)}")
    )
    pause = FIRST_PAUSE_SECONDS
    while True:
        update = call.api.get(path("updates", update_id))
        show(standing(update))
        if update["status"] in OF_STATUS:
            return update
        time.sleep(pause)
        pause = min(pause * GROWTH, LONGEST_PAUSE_SECONDS)


@contextmanager
def _display(update_id: str) -> Iterator[Callable[[Standing], None]]:
    """A bar on a terminal; in a log one line for every new phase."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    terminal = messages()
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[steps]}"),
        TimeElapsedColumn(), TextColumn("{task.fields[note]}", style="dim", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal) as progress:
        yield _bar(progress, update_id) if terminal.is_terminal else _log(update_id)


def _bar(progress: "Progress", update_id: str) -> Callable[[Standing], None]:
    progress.console.print(update_id)
    bar = progress.add_task("", total=None, steps="", note="")

    def show(now: Standing) -> None:
        steps = f"{now.step}/{now.total}" if now.total and now.total > 1 else ""
        progress.update(bar, description=now.phase, completed=now.step, steps=steps, note=now.note)
        progress.tasks[0].total = now.total  # `update` takes None for "as it was"

    return show


def _log(update_id: str) -> Callable[[Standing], None]:
    last = ""

    def show(now: Standing) -> None:
        nonlocal last
        if now.phase != last:
            last = now.phase
            remark(f"{update_id}: {now.phase}" + (f" ({now.note})" if now.note else ""))

    return show


def _ending(update: Json) -> str:
    name, status, version = update["id"], update["status"], update["version"]
    of_model = f"version {version} of '{update['model']}'"
    said = f"; the gate says {update['verdict']['decision']}" if update["verdict"] else ""
    if status == "failed" and update["error"]:
        return f"{name} failed: {plain(update['error']['message'])} [{update['error']['code']}]"
    if status == "promoted":
        return f"{name} is promoted: {of_model} is champion{said}."
    if status == "rejected":
        return f"{name} is rejected: {of_model} is not champion{said}."
    if status == "awaiting_approval":
        return (
            f"{name} awaits approval: {of_model}{said}.\n"
            f"Look: palimpsest report show {update['model']} {version}\n"
            f"Decide: palimpsest update approve {name}, or reject"
        )
    return f"{name} is {status}."
